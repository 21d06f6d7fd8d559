"""The block rollout: denoise a block against the history, commit it, go on.

A lazy iterator of events. Whoever consumes it owns progress, previews and cancellation; between two events nothing
runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.cache import BlockView, KVCache
from ..checkpoint.families import Family
from ..errors import PackForcingError
from ..model.causal import CausalWan, TextKV
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
    """A block is clean: `latents` [1, 16, frames_per_block, h, w] float32 on the CPU. `reused` if it was known
    before.
    """

    block: int
    latents: Tensor
    reused: bool = False


Event = StepDone | BlockDone


@dataclass(frozen=True)
class Denoising:
    """How a block becomes clean. `first_block` replaces `schedule` for block 0 where a family asks for it."""

    schedule: Schedule
    first_block: Schedule | None = None
    context_noise: float = 0.0

    @classmethod
    def of_family(cls, family: Family) -> Denoising:
        """How the checkpoints of `family` are sampled."""
        build = Schedule.warped if family.warp else Schedule.unwarped
        first = family.first_block_steps and build(family.first_block_steps, family.shift)
        return cls(build(family.denoising_steps, family.shift), first, family.context_noise)

    def of_block(self, block: int) -> Schedule:
        return self.first_block if block == 0 and self.first_block is not None else self.schedule


def rollout(
    model: CausalWan,
    text: list[TextKV],
    cache: KVCache,
    noise: NoiseSource,
    denoising: Denoising,
    blocks: int,
    known: Sequence[Tensor] = (),
) -> Iterator[Event]:
    """Latent blocks 0..blocks-1. Blocks in `known` are not denoised again, only committed, which is exact.

    Raises PackForcingError when a block has values that are not finite; the blocks before it stand.
    """
    for block in range(blocks):
        view = cache.begin_block()
        reused = block < len(known)
        if reused:
            latents = known[block]
        else:
            latents = yield from denoise_block(model, text, view, noise, denoising.of_block(block), block)
        done = BlockDone(block, latents.cpu(), reused)
        if block + 1 < blocks:
            # Queued behind the copy, so that a GPU still works on the commit while the consumer has the block.
            commit_block(model, text, cache, view, latents, denoising.context_noise)
        yield done


def denoise_block(
    model: CausalWan, text: list[TextKV], view: BlockView, noise: NoiseSource, schedule: Schedule, block: int
) -> Iterator[StepDone]:
    """Yields each step as it is done; returns the clean latents.

    x0 = x - sigma flow, then x = (1 - sigma') x0 + sigma' eps with fresh noise, until the last x0.
    """
    x = noise(block, 0).to(model.device)
    for step, (timestep, sigma) in enumerate(zip(schedule.timesteps, schedule.sigmas, strict=True)):
        if step > 0:
            x = (1 - sigma) * x + sigma * noise(block, step).to(model.device)
        flow = model.flow(x, frame_timesteps(timestep, x), text, view)
        x = (x.double() - sigma * flow.double()).float()
        yield StepDone(block, step, len(schedule))
    if not torch.isfinite(x).all():
        raise PackForcingError(
            f"Block {block} came out with values that are not finite (NaN or infinity). The blocks before it are kept. "
            "Try another dtype (bf16 instead of fp16), or check the checkpoint and its LoRAs."
        )
    return x


def commit_block(
    model: CausalWan, text: list[TextKV], cache: KVCache, view: BlockView, latents: Tensor, context_noise: float
) -> None:
    """Writes the keys and values of a clean block into the cache."""
    with cache.commit(view) as writer:
        model.commit(latents, frame_timesteps(context_noise, latents), text, writer)


def frame_timesteps(timestep: float, latents: Tensor) -> Tensor:
    """[B, F]: the same timestep for every latent frame of `latents`."""
    return torch.full((latents.shape[0], latents.shape[2]), timestep, dtype=torch.float32)
