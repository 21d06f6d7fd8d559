"""Self-Forcing with distribution matching: rollouts of the generator are moved to where the real model finds them more
likely than a fake model that knows the generator.

Both models predict the clean clip from a noised rollout. The difference of the predictions, divided by the mean
distance of the real one's from the rollout, is the gradient of the generator's loss (DMD, arXiv 2311.18828, equations 7
and 8). The fake model, the critic, learns by flow matching on the rollouts, with several updates for each of the
generator's (DMD2, arXiv 2405.14867). Rates, guidance and the range of noise levels are those of Self-Forcing (arXiv
2506.08009).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...model.causal import CausalWan
from ...rope import GridRope
from .data import LatentBatch
from .flow import Batches, bidirectional_flow, flow_loss, noised
from .learner import COMPRESSOR_EPS, Optimisation
from .loop import Update
from .randomness import SampleNoise, step_generator
from .self_forcing import SelfForcing

CRITIC_UPDATES = 5
# Self-Forcing counts the critic's updates: its step 200 is our 240, since here the generator's count too.
AVERAGE_FROM = 200 * (CRITIC_UPDATES + 1) // CRITIC_UPDATES
WAN_GENERATOR = Optimisation(
    2e-6,
    warmup=0,
    final_rate=1.0,
    betas=(0.0, 0.999),
    weight_decay=0.01,
    clip=10.0,
    average=0.99,
    average_from=AVERAGE_FROM,
)
WAN_CRITIC = Optimisation(4e-7, warmup=0, final_rate=1.0, betas=(0.0, 0.999), weight_decay=0.01, clip=10.0)
# The compressor starts at zero: at the generator's rate it would not get anywhere in the few thousand steps of a run.
WAN_COMPRESSOR = Optimisation(
    1e-4,
    warmup=0,
    final_rate=1.0,
    betas=(0.0, 0.999),
    eps=COMPRESSOR_EPS,
    clip=10.0,
    average=0.99,
    average_from=AVERAGE_FROM,
)


@dataclass
class DMDStage:
    """`generator` learns to make what `real` finds likely; `fake`, the critic, learns what the generator makes.

    `real` (frozen) and `fake` are bidirectional models of whole clips; `fake` begins as `real`. Of a batch, the prompts
    are used, and the size of its clips. `same_exit`: one random step for all blocks of a rollout, instead of one each.
    """

    generator: SelfForcing
    real: CausalWan
    fake: CausalWan
    batches: Batches
    rope: GridRope
    optimisation_of_generator: Optimisation = WAN_GENERATOR
    optimisation_of_compressor: Optimisation = WAN_COMPRESSOR
    optimisation_of_critic: Optimisation = WAN_CRITIC
    seed: int = 0
    guidance: float = 3.0
    empty_context: Tensor | None = None
    critic_updates: int = CRITIC_UPDATES
    same_exit: bool = True
    shift: float = 5.0
    noise_range: tuple[float, float] = (0.02, 0.98)
    precision: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        self.real.net.requires_grad_(False)

    @property
    def networks(self) -> dict[str, nn.Module]:
        compressor = {"compressor": self.generator.high_res} if self.generator.high_res is not None else {}
        return {"generator": self.generator.model.net, **compressor, "critic": self.fake.net}

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        all_of_them = {
            "generator": self.optimisation_of_generator,
            "compressor": self.optimisation_of_compressor,
            "critic": self.optimisation_of_critic,
        }
        return {name: all_of_them[name] for name in self.networks}

    def is_critics(self, number: int) -> bool:
        """Whether step `number` updates the critic: all but the last of each round do."""
        return number % (self.critic_updates + 1) < self.critic_updates

    def step(self, number: int) -> Update:
        batch = self.batches(number)
        random = SampleNoise(self.seed, number, batch.indices)
        critics = self.is_critics(number)
        # Older PyTorch uses weights that were cast without a gradient again, from its cache, where one is needed.
        with torch.autocast(
            self.real.device.type, self.precision, enabled=self.precision != torch.float32, cache_enabled=False
        ):
            clip = self.rollout(number, batch, random, gradient=not critics)
            if critics:
                return Update("critic", self._critic_loss(clip, batch, random))
            loss, figures = self.generator_loss(clip, batch, random)
        return Update(tuple(name for name in self.networks if name != "critic"), loss, figures)

    def rollout(self, number: int, batch: LatentBatch, random: SampleNoise, gradient: bool) -> Tensor:
        """What the generator makes of the batch's prompts at step `number`."""
        exits = self.exits(number, batch.latents.shape[2] // self.generator.frames_per_block)
        channels, _, height, width = batch.latents.shape[1:]
        shape = (channels, self.generator.frames_per_block, height, width)
        return self.generator.rollout(batch.context, lambda: random.normal(shape), exits, gradient)

    def exits(self, number: int, blocks: int) -> list[int]:
        """Each block's step with a gradient, the same on all ranks."""
        steps, count = len(self.generator.schedule), 1 if self.same_exit else blocks
        drawn = torch.randint(steps, (count,), generator=step_generator(self.seed, number, "exit")).tolist()
        return drawn * blocks if self.same_exit else drawn

    def _critic_loss(self, clip: Tensor, batch: LatentBatch, random: SampleNoise) -> Tensor:
        sigma, noise = self._noise(clip, random)
        flow = bidirectional_flow(self.fake, noised(clip, sigma, noise), sigma, batch.context, self.rope)
        return flow_loss(flow, clip, noise)

    def generator_loss(self, clip: Tensor, batch: LatentBatch, random: SampleNoise) -> tuple[Tensor, dict[str, float]]:
        """Half the squared distance to where the clip [B, 16, F, h, w] shall go: its gradient is the wanted one."""
        direction = self.direction(clip.detach(), batch.context, random)
        loss = 0.5 * (clip - (clip.detach() - direction)).square().mean()
        return loss, {"distribution": direction.abs().mean().item()}

    @torch.no_grad()
    def direction(self, clip: Tensor, context: Tensor, random: SampleNoise) -> Tensor:
        """(fake - real) / mean |clip - real|, of what each says that the noised clip was; real with guidance."""
        sigma, noise = self._noise(clip, random)
        x = noised(clip, sigma, noise)
        empty = torch.zeros_like(context) if self.empty_context is None else self.empty_context.expand_as(context)
        fake = self._x0(self.fake, x, sigma, context)
        real, unprompted = (self._x0(self.real, x, sigma, text) for text in (context, empty))
        real = real + self.guidance * (real - unprompted)
        scale = (clip - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        return (fake - real) / scale.clamp(min=1e-6)

    def _x0(self, model: CausalWan, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        flow = bidirectional_flow(model, x, sigma, context, self.rope).float()
        return x - sigma[:, None, :, None, None] * flow

    def _noise(self, clip: Tensor, random: SampleNoise) -> tuple[Tensor, Tensor]:
        """One noise level a clip, for all frames [B, F], and noise like `clip`."""
        u = random.uniform((1,))
        sigma = (self.shift * u / (1 + (self.shift - 1) * u)).clamp(*self.noise_range)
        return sigma.expand(-1, clip.shape[2]).to(clip.device), random.normal(clip.shape[1:]).to(clip.device)
