"""Few-step distillation of a causal model, by regression on the ODE solution of its many-step teacher.

At a noise level of the few-step sampler, the student directly predicts the end point of the teacher's ODE, given the
clean clip as history (teacher forcing). Trajectories start at noised data and not, as in CausVid (arXiv 2412.07772), on
the teacher's trajectories from pure noise: a sampler that adds fresh noise between its steps calls the model at such
points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...cache.config import Policy
from ...model.causal import CausalWan, TextKV
from ...sampler.schedule import Schedule
from .compressor import TwinsStage, compressed_tokens, small_latents
from .data import LatentBatch
from .flow import autocast, noised
from .functional_cache import FunctionalCache, SideBySide, teacher_forced_views
from .loop import Update
from .randomness import SampleNoise


@dataclass(kw_only=True)
class DistillationStage(TwinsStage):
    """Distils the frozen many-step causal `teacher` into `model`, which usually starts from the teacher's weights. Both
    use the policies `memories` and share the compressor.

    The teacher's ODE is solved with `teacher_steps` Euler steps from each noise level, along the schedule of
    `levels.shift`. `guidance` other than 1 is the scale of classifier-free guidance of the teacher; the unconditional
    embedding is zeros.
    """

    teacher: CausalWan
    sigmas: Sequence[float] = Schedule.warped((1000.0, 750.0, 500.0, 250.0), shift=5.0).sigmas
    teacher_steps: int = 12
    guidance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher.net.requires_grad_(False)

    def step(self, number: int) -> Update:
        batch = self.batches(number)
        random, device = SampleNoise(self.seed, number, batch.indices), self.model.device
        x0 = batch.latents.to(device)
        blocks = x0.shape[2] // self.frames_per_block
        sigma = torch.tensor(self.sigmas)[random.integers(len(self.sigmas), (blocks,))]
        sigma = sigma.repeat_interleave(self.frames_per_block, dim=1).to(device)
        x = noised(x0, sigma, random.normal(x0.shape[1:]).to(device))
        history_sigma = (self.history_noise * random.uniform((1,))).expand(-1, x0.shape[2]).to(device)
        history = noised(x0, history_sigma, random.normal(x0.shape[1:]).to(device))
        policy = self.memories[number % len(self.memories)]
        with autocast(device, self.precision):
            target = self.destination(history, x, sigma, batch, policy)
            flow = self.flow(history, x, sigma, batch, policy)
        error = x - per_frame(sigma) * flow.float() - target
        return Update(tuple(self.networks), error.square().mean())

    @torch.no_grad()
    def destination(self, history: Tensor, x: Tensor, sigma: Tensor, batch: LatentBatch, policy: Policy) -> Tensor:
        """Solves the teacher's ODE for every block of x [B, 16, F, h, w] from noise levels [B, F] down to 0, each block
        given the clean `history`; returns the end points [B, 16, F, h, w].
        """
        prompted = self._prompted(batch, history, policy)
        empty = replace(batch, context=torch.zeros_like(batch.context))
        unprompted = self._prompted(empty, history, policy) if self.guidance != 1 else None
        shift = self.levels.shift
        u = sigma / (shift - (shift - 1) * sigma)
        for step in range(self.teacher_steps):
            below = u * (1 - (step + 1) / self.teacher_steps)
            following = shift * below / (1 + (shift - 1) * below)
            flow = self._teacher_flow(x, sigma, *prompted)
            if unprompted:
                other = self._teacher_flow(x, sigma, *unprompted)
                flow = other + self.guidance * (flow - other)
            x, sigma = x + per_frame(following - sigma) * flow, following
        return x

    def _prompted(self, batch: LatentBatch, history: Tensor, policy: Policy) -> tuple[list[TextKV], SideBySide]:
        """Returns the teacher's text keys and values, and the views of its blocks on the clean `history`."""
        text = self.teacher.encode_text(batch.context)
        plan, _ = self.plan(policy, history.shape[2] // self.frames_per_block)
        cache = FunctionalCache(plan.partitions, self.teacher.config.num_layers, self.rope, self.teacher.attention)
        small = small_latents(batch, plan.twins, self.frames_per_block, self.vae)
        tokens = compressed_tokens(self.teacher, self.high_res, history, small, self.frames_per_block)
        return text, SideBySide(teacher_forced_views(self.teacher, text, cache, history, tokens.__getitem__))

    def _teacher_flow(self, x: Tensor, sigma: Tensor, text: list[TextKV], history: SideBySide) -> Tensor:
        return self.teacher.flow(x, 1000 * sigma, text, history).float()


def per_frame(sigma: Tensor) -> Tensor:
    """Reshapes [B, F] to broadcast over latents [B, 16, F, h, w]."""
    return sigma[:, None, :, None, None]
