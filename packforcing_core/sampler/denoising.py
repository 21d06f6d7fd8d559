"""Events of a rollout, and the denoising of one block."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cache.cache import BlockView
from ..cache.ledger import Selection
from ..checkpoint.families import Family
from ..devices import widest_float
from ..errors import PackForcingError
from ..model.causal import CausalWan, TextKV
from ..queued import to_device
from .noise import NoiseSource
from .schedule import Schedule


@dataclass(frozen=True)
class StepDone:
    """Denoising step `step` (from 0) of `steps` of a block has run."""

    block: int
    step: int
    steps: int


@dataclass(frozen=True)
class BlockDone:
    """A block is finished: `latents` [1, 16, frames_per_block, h, w] float32 on the CPU. `reused`: it was known before.

    To repeat the block exactly: `selection` is what each layer selected of the past when the block was committed;
    `tokens` [1, N_c, D] on the CPU are its compressed tokens for the bank; `in_flight` [1, 16, F, h, w] float32 on the
    CPU are the noisy blocks after it that a rolling rollout has started. `video` [1, 3, T, H, W] in -1..1 is set if the
    rollout decodes. `sampled_selection` is what was selected while the block was sampled, for selectors that select
    again; it is only shown.
    """

    block: int
    latents: Tensor
    reused: bool = False
    selection: Selection = ()
    tokens: Tensor | None = None
    video: Tensor | None = None
    in_flight: Tensor | None = None
    sampled_selection: Selection = ()

    def to_select_again(self) -> BlockDone:
        """The block before it is committed, if that makes another selection."""
        return replace(self, selection=(), sampled_selection=self.selection)

    @property
    def seen(self) -> Selection:
        """What each layer selected while the block was sampled, as far as it is known; else when it was committed."""
        return self.sampled_selection or self.selection


Event = StepDone | BlockDone


@dataclass(frozen=True)
class Denoising:
    """How blocks are denoised. `first_block` replaces `schedule` for the first block of a scene, if a family needs it:
    that block decides what the prompt leaves open. `rolling` denoises as many blocks together as there are steps, each
    at a different step.

    The first `repainted_blocks` run only the last `denoise` (0..1) of their steps.
    """

    schedule: Schedule
    first_block: Schedule | None = None
    context_noise: float = 0.0
    rolling: bool = False
    repainted_blocks: int = 0
    denoise: float = 1.0

    def __post_init__(self):
        if self.rolling and self.first_block is not None:
            raise PackForcingError(
                "A rolling rollout has one schedule for all blocks, but first_block_steps gives the first block "
                "another one. Remove first_block_steps, or choose a family that samples block by block."
            )

    @classmethod
    def of_family(cls, family: Family) -> Denoising:
        """The denoising of checkpoints of `family`."""
        build = Schedule.warped if family.warp else Schedule.unwarped
        steps = family.first_block_steps
        first = None if steps is None else build(steps, family.shift)
        rolling = family.rollout == "rolling"
        return cls(build(family.denoising_steps, family.shift), first, family.context_noise, rolling)

    def of_block(self, block: int, behind_cut: bool = False) -> Schedule:
        """The schedule of block 0, and of one `behind_cut` unless it is repainted, is that of a first block."""
        repainted = block < self.repainted_blocks
        begins = block == 0 or (behind_cut and not repainted)
        whole = self.first_block if begins and self.first_block is not None else self.schedule
        return whole.last_steps(self.denoise) if repainted else whole

    @property
    def window_blocks(self) -> int:
        """How many blocks are denoised together."""
        return len(self.schedule) if self.rolling else 1

    def calls(self, block: int, behind_cut: bool = False) -> int:
        """Denoising calls from the end of the previous block to the end of `block`: the number of `StepDone` events."""
        return 1 if self.rolling and block > 0 else len(self.of_block(block, behind_cut))


def denoise_block(
    model: CausalWan,
    text: list[TextKV],
    view: BlockView,
    noise: NoiseSource,
    schedule: Schedule,
    block: int,
    drawn: Tensor | None = None,
) -> Generator[StepDone, None, Tensor]:
    """Yields each step when it is done; returns the clean latents. `drawn` is the block's first noise on the device, if
    it was drawn before.

    x0 = x - sigma flow, then x = (1 - sigma') x0 + sigma' eps with fresh noise, until the last x0.
    """
    x = to_device(noise(block, 0), model.device) if drawn is None else drawn
    for step, (timestep, sigma) in enumerate(zip(schedule.timesteps, schedule.sigmas, strict=True)):
        if step > 0:
            x = (1 - sigma) * x + sigma * to_device(noise(block, step), model.device)
        flow = model.flow(x, frame_timesteps(timestep, x), text, view)
        x = without_noise(x, flow, sigma)
        yield StepDone(block, step, len(schedule))
    require_finite(x, block)
    return x


def without_noise(x: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """x0 = x - sigma flow, computed in the widest float of the device; returned in float32."""
    wide = widest_float(x.device)
    return (x.to(wide) - sigma * flow.to(wide)).float()


def require_finite(x: Tensor, block: int) -> None:
    """Raises PackForcingError if `x`, the latents of `block`, contains NaN or infinity."""
    if not torch.isfinite(x).all():
        raise PackForcingError(
            f"Block {block} has values that are not finite (NaN or infinity). The blocks before it are kept. "
            "Try another dtype (bf16 instead of fp16), or check the checkpoint and its LoRAs."
        )


def frame_timesteps(timestep: float, latents: Tensor) -> Tensor:
    """[B, F]: the same timestep for each latent frame of `latents`."""
    return torch.full((latents.shape[0], latents.shape[2]), timestep, dtype=torch.float32)
