"""The rollout of Self-Forcing (arXiv 2506.08009): training samples blocks as the sampler does, with its KV cache
policies, and with a gradient.

For each block the sampler's steps run without a gradient up to one of them, the exit step; its x0 becomes the block,
and later steps are skipped. Only the exit step has a gradient. The exit step varies, so every step is trained. Beyond
its own block a gradient flows through the compressed blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...cache.config import PackForcing, Policy
from ...cache.policies.packforcing import FULL_SPAN
from ...compressor.compressor import Branches, Compressor
from ...compressor.high_res import HighRes
from ...model.causal import CausalWan, TextKV
from ...rope import GridRope
from ...sampler.denoising import frame_timesteps
from ...sampler.rollout import commit_block
from ...sampler.schedule import Schedule
from ...vae.streaming import StreamingDecoder, encode
from ...vae.wan_vae import WanVAE
from .functional_cache import FunctionalView, commit_compressed, functional_cache
from .parts import seen_compressed

PAPERS_MEMORY = PackForcing(mid_span=FULL_SPAN)
FOUR_STEPS = Schedule.warped((1000.0, 750.0, 500.0, 250.0), shift=5.0)
Draw = Callable[[], Tensor]
"""Returns Gaussian noise [B, 16, frames_per_block, h, w], different at every call."""


@dataclass
class SelfForcing:
    """Rolls out a generator under sampling conditions: `model` with one of the policies `memories`; `high_res` and the
    frozen `vae` compress blocks. If the sampler has other steps for the first block, they are `first_block`.

    Without `high_res` the compressed blocks come from the low-resolution branch alone. A policy without a bank needs
    neither.
    """

    model: CausalWan
    rope: GridRope
    high_res: HighRes | None = None
    vae: WanVAE | None = None
    memories: Sequence[Policy] = (PAPERS_MEMORY,)
    schedule: Schedule = FOUR_STEPS
    frames_per_block: int = 4
    first_block: Schedule | None = None

    def rollout(self, context: Tensor, draw: Draw, exits: Sequence[int], gradient: bool, turn: int = 0) -> Tensor:
        """Returns a clip [B, 16, F, h, w] float32. `exits` has the exit step of each block, so its length is the number
        of blocks; in the first block it counts in proportion to the number of its steps. Rollout number `turn` takes
        the policy whose turn it is.

        `context` is [B, text_len, text_dim]. The clip has an autograd graph if `gradient` is True.
        """
        memory = self.memories[turn % len(self.memories)]
        with torch.set_grad_enabled(gradient):
            return self._rollout(self.model.encode_text(context), draw, exits, memory)

    def _rollout(self, text: list[TextKV], draw: Draw, exits: Sequence[int], memory: Policy) -> Tensor:
        cache = functional_cache(self.model, self.rope, memory, self.frames_per_block)
        twins = Twins(self, seen_compressed(cache.partitions, len(exits)))
        made: list[Tensor] = []
        for block, step in enumerate(exits):
            view = cache.begin_block()
            schedule = self.first_block if block == 0 and self.first_block else self.schedule
            last = (step + 1) * len(schedule) // len(self.schedule) - 1
            made.append(self._denoised(text, view, draw, schedule, last))
            if block + 1 < len(exits):
                clean = made[-1].detach()
                with torch.no_grad():
                    commit_block(self.model, text, cache, view, clean, 0.0)
                    twins.push(block, clean)
                if cache.due_block is not None:
                    commit_compressed(self.model, text, cache, twins.tokens(cache.due_block))
        return torch.cat(made, dim=2)

    def _denoised(self, text: list[TextKV], view: FunctionalView, draw: Draw, schedule: Schedule, last: int) -> Tensor:
        """Returns x0 of step `last` with its graph; the steps before it have none."""
        x = draw().to(self.model.device)
        with torch.no_grad():
            for step in range(last):
                x0 = self._x0(x, schedule, step, text, view)
                sigma = schedule.sigmas[step + 1]
                x = (1 - sigma) * x0 + sigma * draw().to(self.model.device)
        return self._x0(x, schedule, last, text, view)

    def _x0(self, x: Tensor, schedule: Schedule, step: int, text: list[TextKV], view: FunctionalView) -> Tensor:
        timesteps = frame_timesteps(schedule.timesteps[step], x)
        return x - schedule.sigmas[step] * self.model.flow(x, timesteps, text, view).float()


class Twins:
    """Computes the hidden tokens of the blocks `seen` of one rollout. Only these blocks are kept, and decoding stops
    after the last of them.
    """

    def __init__(self, rollout: SelfForcing, seen: range):
        self._seen = seen
        self._waiting: dict[int, tuple[Tensor, Tensor | None]] = {}
        if seen:
            trained: Branches = "both" if rollout.vae else "high_res"
            branches: Branches = "low_res" if rollout.high_res is None else trained
            encoder = partial(encode, rollout.vae) if rollout.vae else None
            self._compressor = Compressor(rollout.model, branches, high_res=rollout.high_res, encode=encoder)
            self._decoder = StreamingDecoder(rollout.vae) if rollout.vae else None

    def push(self, block: int, clean: Tensor) -> None:
        """Adds the next block of the clip. Call it without a gradient."""
        if block < self._seen.stop:
            video = self._decoder.push(clean) if self._decoder else None
            if block in self._seen:
                self._waiting[block] = clean, video

    def tokens(self, block: int) -> Tensor:
        """Returns the hidden tokens [B, N_c, D] of `block`, with a graph where gradients are enabled."""
        latents, video = self._waiting.pop(block)
        return self._compressor.tokens(latents, video, block == 0)
