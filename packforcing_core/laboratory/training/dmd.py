"""Self-Forcing with distribution matching distillation (DMD): the generator's rollouts are moved towards higher
likelihood under a real score model, relative to a fake score model trained on these rollouts.

Both models predict the clean clip from a noised rollout. The difference of the predictions, divided by the mean
absolute distance of the real prediction from the rollout, is the gradient of the generator's loss (DMD, arXiv
2311.18828, equations 7 and 8). The fake model, the critic, is trained by flow matching on the rollouts, with several
updates for each of the generator's (DMD2, arXiv 2405.14867). Learning rates, guidance and the range of noise levels are
those of Self-Forcing (arXiv 2506.08009).
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
# Self-Forcing counts the critic's updates only. Here the generator's count too, so its step 200 is our step 240.
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
# The compressor starts at zero: at the generator's rate it would barely change in the few thousand steps of a run.
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
    """Trains `generator` against the score models `real` and `fake`. `fake`, the critic, is trained on the generator's
    outputs.

    `real` (frozen) and `fake` are bidirectional models of whole clips; `fake` starts from the weights of `real`. Of a
    batch only the prompts and the shape of its clips are used. `same_exit`: all blocks of a rollout have the same
    random exit step, instead of one each.
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
        """Whether step `number` updates the critic. In each round all steps but the last do."""
        return number % (self.critic_updates + 1) < self.critic_updates

    def step(self, number: int) -> Update:
        batch = self.batches(number)
        random = SampleNoise(self.seed, number, batch.indices)
        critics = self.is_critics(number)
        # In older PyTorch autocast's cache would reuse weights that were cast without a gradient where one is needed.
        with torch.autocast(
            self.real.device.type, self.precision, enabled=self.precision != torch.float32, cache_enabled=False
        ):
            clip = self.rollout(number, batch, random, gradient=not critics)
            if critics:
                return Update("critic", self._critic_loss(clip, batch, random))
            loss, figures = self.generator_loss(clip, batch, random)
        return Update(tuple(name for name in self.networks if name != "critic"), loss, figures)

    def rollout(self, number: int, batch: LatentBatch, random: SampleNoise, gradient: bool) -> Tensor:
        """Returns the generator's rollout [B, 16, F, h, w] for the batch's prompts at step `number`."""
        exits = self.exits(number, batch.latents.shape[2] // self.generator.frames_per_block)
        channels, _, height, width = batch.latents.shape[1:]
        shape = (channels, self.generator.frames_per_block, height, width)
        # Over the rounds each policy has its turn with the generator, and within a round with the critic.
        turn = sum(divmod(number, self.critic_updates + 1))
        return self.generator.rollout(batch.context, lambda: random.normal(shape), exits, gradient, turn)

    def exits(self, number: int, blocks: int) -> list[int]:
        """Returns each block's exit step, the sampling step that has a gradient; the same on all ranks."""
        steps, count = len(self.generator.schedule), 1 if self.same_exit else blocks
        drawn = torch.randint(steps, (count,), generator=step_generator(self.seed, number, "exit")).tolist()
        return drawn * blocks if self.same_exit else drawn

    def _critic_loss(self, clip: Tensor, batch: LatentBatch, random: SampleNoise) -> Tensor:
        sigma, noise = self._noise(clip, random)
        flow = bidirectional_flow(self.fake, noised(clip, sigma, noise), sigma, batch.context, self.rope)
        return flow_loss(flow, clip, noise)

    def generator_loss(self, clip: Tensor, batch: LatentBatch, random: SampleNoise) -> tuple[Tensor, dict[str, float]]:
        """Returns half the mean squared distance of the clip [B, 16, F, h, w] from a detached target, so that its
        gradient is proportional to `direction`; with figures for the log.
        """
        direction = self.direction(clip.detach(), batch.context, random)
        loss = 0.5 * (clip - (clip.detach() - direction)).square().mean()
        return loss, {"distribution": direction.abs().mean().item()}

    @torch.no_grad()
    def direction(self, clip: Tensor, context: Tensor, random: SampleNoise) -> Tensor:
        """Returns (fake - real) / mean |clip - real|, where `fake` and `real` are the models' predictions of x0 from
        the noised clip, the real one with classifier-free guidance.
        """
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
        """Returns one noise level per clip, repeated for all frames [B, F], and noise with the shape of `clip`."""
        u = random.uniform((1,))
        sigma = (self.shift * u / (1 + (self.shift - 1) * u)).clamp(*self.noise_range)
        return sigma.expand(-1, clip.shape[2]).to(clip.device), random.normal(clip.shape[1:]).to(clip.device)
