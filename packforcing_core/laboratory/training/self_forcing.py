"""The rollout of Self-Forcing (arXiv 2506.08009): what training looks at is what the sampler would make, block by block
with its own policy, and a gradient.

Per block the sampler's few steps run without a gradient up to one, the exit, whose x0 becomes the block; steps behind
it are left out. So the exit carries the gradient of the model, and it stands for every step in turn. Beyond its own
block a gradient flows through the compressed blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...cache.config import FULL_SPAN, PackForcing, Policy
from ...compressor.compressor import Branches, Compressor
from ...compressor.high_res import HighRes
from ...model.causal import CausalWan, TextKV
from ...rope import GridRope
from ...sampler.denoising import frame_timesteps
from ...sampler.rollout import commit_block
from ...sampler.schedule import Schedule
from ...vae.streaming import StreamingDecoder, encode
from ...vae.wan_vae import WanVAE
from .functional_cache import FunctionalCache, FunctionalView, commit_compressed
from .parts import seen_compressed

PAPERS_MEMORY = PackForcing(mid_span=FULL_SPAN)
FOUR_STEPS = Schedule.warped((1000.0, 750.0, 500.0, 250.0), shift=5.0)
Draw = Callable[[], Tensor]
"""Gaussian noise [B, 16, frames_per_block, h, w], other at every call."""


@dataclass
class SelfForcing:
    """Rolls a generator out as it will be used: `model` with `memory`, compressed blocks by `high_res` and the frozen
    `vae`.

    Without `high_res` the compressed blocks are the low-resolution branch alone; a policy without a bank needs neither.
    """

    model: CausalWan
    rope: GridRope
    high_res: HighRes | None = None
    vae: WanVAE | None = None
    memory: Policy = PAPERS_MEMORY
    schedule: Schedule = FOUR_STEPS
    frames_per_block: int = 4

    def rollout(self, context: Tensor, draw: Draw, exits: Sequence[int], gradient: bool) -> Tensor:
        """A clip [B, 16, F, h, w] float32 of as many blocks as there are `exits`: each block's step that makes it.

        `context` [B, text_len, text_dim]. The clip has a graph if `gradient` says so.
        """
        with torch.set_grad_enabled(gradient):
            return self._rollout(self.model.encode_text(context), draw, exits)

    def _rollout(self, text: list[TextKV], draw: Draw, exits: Sequence[int]) -> Tensor:
        partitions = self.memory.partitions(self.frames_per_block)
        cache = FunctionalCache(partitions, self.model.config.num_layers, self.rope, self.model.attention)
        twins = Twins(self, seen_compressed(partitions, len(exits)))
        made: list[Tensor] = []
        for block, step in enumerate(exits):
            view = cache.begin_block()
            made.append(self._denoised(text, view, draw, step))
            if block + 1 < len(exits):
                clean = made[-1].detach()
                with torch.no_grad():
                    commit_block(self.model, text, cache, view, clean, 0.0)
                    twins.push(block, clean)
                if cache.due_block is not None:
                    commit_compressed(self.model, text, cache, twins.tokens(cache.due_block))
        return torch.cat(made, dim=2)

    def _denoised(self, text: list[TextKV], view: FunctionalView, draw: Draw, last: int) -> Tensor:
        """x0 of step `last`, with its graph; the steps before it have none."""
        x = draw().to(self.model.device)
        with torch.no_grad():
            for step in range(last):
                x0 = self._x0(x, step, text, view)
                sigma = self.schedule.sigmas[step + 1]
                x = (1 - sigma) * x0 + sigma * draw().to(self.model.device)
        return self._x0(x, last, text, view)

    def _x0(self, x: Tensor, step: int, text: list[TextKV], view: FunctionalView) -> Tensor:
        timesteps = frame_timesteps(self.schedule.timesteps[step], x)
        return x - self.schedule.sigmas[step] * self.model.flow(x, timesteps, text, view).float()


class Twins:
    """Makes the hidden tokens of the blocks `seen` of one rollout: only these are kept, and decoded up to the last."""

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
        """The next block of the clip; call it without a gradient."""
        if block < self._seen.stop:
            video = self._decoder.push(clean) if self._decoder else None
            if block in self._seen:
                self._waiting[block] = clean, video

    def tokens(self, block: int) -> Tensor:
        """[B, N_c, D], with a graph where gradients are enabled."""
        latents, video = self._waiting.pop(block)
        return self._compressor.tokens(latents, video, block == 0)
