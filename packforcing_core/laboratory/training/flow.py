"""Flow matching: the stage of the bidirectional teacher, and that of the causal model with teacher forcing.

x = (1 - sigma) x0 + sigma noise; the network predicts the flow noise - x0. Noise levels follow the sampler's shifted
schedule; a fraction of them are exactly those of a few-step sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...cache.config import Full, Policy, SinkWindow, Window
from ...model.causal import CausalWan
from ...rope import GridRope
from .data import LatentBatch
from .learner import Optimisation
from .loop import Update
from .parts import Part, PartsHistory, PartsPlan, Reading
from .precision import autocast
from .randomness import SampleNoise

Batches = Callable[[int], LatentBatch]
"""Returns the batch of a step: this rank's share."""


@dataclass(frozen=True)
class NoiseLevels:
    """The distribution of noise levels: the schedule with `shift`, or, with probability `few`, one of `steps`."""

    shift: float = 5.0
    steps: tuple[float, ...] = ()
    few: float = 0.0

    def draw(self, count: int, random: SampleNoise) -> Tensor:
        """Draws sigmas [B, count] in 0..1."""
        u = random.uniform((count,))
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        if not self.steps:
            return sigma
        chosen = torch.tensor(self.steps)[random.integers(len(self.steps), (count,))]
        return torch.where(random.uniform((count,)) < self.few, chosen, sigma)


def noised(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Returns x0 [B, 16, F, h, w] with noise at the levels `sigma` [B, F]."""
    sigma = sigma[:, None, :, None, None]
    return (1 - sigma) * x0 + sigma * noise


def flow_loss(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Returns the mean squared error of the flow, computed in float32."""
    return (flow.float() - (noise - x0)).square().mean()


@dataclass
class TeacherStage:
    """Trains a bidirectional model: every latent frame of a clip attends to all others, and all have the same noise
    level.

    A fraction of the prompts is dropped, for classifier-free guidance. `empty_context` [1, text_len, text_dim] replaces
    them; None for zeros.
    """

    model: CausalWan
    batches: Batches
    rope: GridRope
    optimisation_of_model: Optimisation
    seed: int = 0
    levels: NoiseLevels = field(default_factory=NoiseLevels)
    dropped_prompts: float = 0.1
    empty_context: Tensor | None = None
    precision: torch.dtype = torch.bfloat16

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"teacher": self.model.net}

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        return {"teacher": self.optimisation_of_model}

    def step(self, number: int) -> Update:
        batch = self.batches(number)
        random, device = SampleNoise(self.seed, number, batch.indices), self.model.device
        x0 = batch.latents.to(device)
        sigma = self.levels.draw(1, random).expand(-1, x0.shape[2]).to(device)
        noise = random.normal(x0.shape[1:]).to(device)
        kept = (random.uniform() >= self.dropped_prompts)[:, None, None]
        context = torch.where(kept, batch.context, 0.0 if self.empty_context is None else self.empty_context)
        with autocast(x0.device, self.precision):
            flow = bidirectional_flow(self.model, noised(x0, sigma, noise), sigma, context, self.rope)
        return Update("teacher", flow_loss(flow, x0, noise))


def bidirectional_flow(model: CausalWan, x: Tensor, sigma: Tensor, context: Tensor, rope: GridRope) -> Tensor:
    """Returns the flow of whole clips x [B, 16, F, h, w] at noise levels [B, F]; every frame attends to all others."""
    tokens = x.shape[2] * rope.grid[0] * rope.grid[1]
    whole = Part(Reading(slice(0, tokens), rope.frames(range(x.shape[2]))))
    return model.flow(x, 1000 * sigma, model.encode_text(context), PartsHistory([whole], model.attention))


MEMORIES: Sequence[Policy] = (
    Full(),
    Full(),
    SinkWindow(window_frames=16, sink_frames=8),
    SinkWindow(window_frames=12, sink_frames=4),
    Window(window_frames=12),
)
"""The policies that teacher forcing cycles through: with gaps closed and without sinks, so that the
model learns each.
"""


@dataclass
class CausalStage:
    """Teacher forcing: the noisy blocks of a clip attend to its clean blocks as one of the policies `memories` would
    show them.

    The clean blocks carry some noise, at a level drawn per clip up to `history_noise`, because in sampling the model's
    own outputs are not perfect either; their timestep is still 0. Several `noisy_copies` of the clip, each with its own
    noise, share one copy of the clean blocks. The clean blocks have no loss, so with more copies a larger part of the
    pass contributes to it.
    """

    model: CausalWan
    batches: Batches
    rope: GridRope
    optimisation_of_model: Optimisation
    frames_per_block: int = 4
    seed: int = 0
    levels: NoiseLevels = field(default_factory=NoiseLevels)
    memories: Sequence[Policy] = MEMORIES
    history_noise: float = 0.1
    precision: torch.dtype = torch.bfloat16
    noisy_copies: int = 1

    def __post_init__(self) -> None:
        self._plans: dict[tuple[Policy, int], tuple[PartsPlan, PartsHistory]] = {}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"causal": self.model.net}

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        return {"causal": self.optimisation_of_model}

    def step(self, number: int) -> Update:
        batch = self.batches(number)
        random, device = SampleNoise(self.seed, number, batch.indices), self.model.device
        clean = batch.latents.to(device)
        x0 = clean.repeat(1, 1, self.noisy_copies, 1, 1)
        blocks = x0.shape[2] // self.frames_per_block
        sigma = self.levels.draw(blocks, random).repeat_interleave(self.frames_per_block, dim=1).to(device)
        noise = random.normal(x0.shape[1:]).to(device)
        history_sigma = (self.history_noise * random.uniform((1,))).expand(-1, clean.shape[2]).to(device)
        history = noised(clean, history_sigma, random.normal(clean.shape[1:]).to(device))
        policy = self.memories[number % len(self.memories)]
        with autocast(x0.device, self.precision):
            flow = self.flow(history, noised(x0, sigma, noise), sigma, batch, policy)
        return Update(tuple(self.networks), flow_loss(flow, x0, noise))

    def flow(self, history: Tensor, x: Tensor, sigma: Tensor, batch: LatentBatch, policy: Policy) -> Tensor:
        """Returns the flow of every block of the copies x, each attending to the blocks of the clean `history` that
        `policy` shows it.
        """
        _, seen = self.plan(policy, history.shape[2] // self.frames_per_block)
        return teacher_forced_flow(self.model, history, x, sigma, batch.context, seen)

    def plan(self, policy: Policy, blocks: int) -> tuple[PartsPlan, PartsHistory]:
        """Returns the attention plan of a clip of `blocks` blocks under `policy`; it is cached."""
        if (policy, blocks) not in self._plans:
            plan = PartsPlan(policy.partitions(self.frames_per_block), blocks, self.rope)
            self._plans[policy, blocks] = plan, PartsHistory(plan.parts(self.noisy_copies), self.model.attention)
        return self._plans[policy, blocks]


def teacher_forced_flow(
    model: CausalWan, history: Tensor, x: Tensor, sigma: Tensor, context: Tensor, seen: PartsHistory
) -> Tensor:
    """Returns the flow of every block of x [B, 16, copies x F, h, w] at noise levels [B, copies x F], each attending to
    blocks of the clean `history` [B, 16, F, h, w] as `seen` plans it.
    """
    timesteps = torch.cat((sigma.new_zeros(len(sigma), history.shape[2]), 1000 * sigma), dim=1)
    flow = model.flow(torch.cat((history, x), dim=2), timesteps, model.encode_text(context), seen)
    return flow[:, :, history.shape[2] :]
