"""The block rollout: denoise a block against the history, commit it, go on.

A lazy iterator of events. Whoever consumes it owns progress, previews and cancellation; between two events nothing
runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..cache.cache import BlockView, KVCache, Selection
from ..cache.partitions import Partitions
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

    `selection` is what each layer selected of the past, needed to repeat the block exactly. `video` [1, 3, T, H, W] in
    -1..1 is the decoded block where the rollout decodes. `in_flight` [1, 16, F, h, w] float32 on the CPU are the blocks
    behind it that a rolling rollout has begun, still noisy, needed to go on from here exactly.
    """

    block: int
    latents: Tensor
    reused: bool = False
    selection: Selection = ()
    video: Tensor | None = None
    in_flight: Tensor | None = None


Event = StepDone | BlockDone


@dataclass(frozen=True)
class Denoising:
    """How a block becomes clean. `first_block` replaces `schedule` for block 0 where a family asks for it. `rolling`
    denoises as many blocks together as there are steps, each at its own.

    The first `repainted_blocks` run the last `strength` (0..1) of their steps only.
    """

    schedule: Schedule
    first_block: Schedule | None = None
    context_noise: float = 0.0
    rolling: bool = False
    repainted_blocks: int = 0
    strength: float = 1.0

    def __post_init__(self):
        if self.rolling and self.first_block is not None:
            raise PackForcingError(
                "A rolling rollout has one schedule for all blocks, but the first block was given its own. "
                "Leave first_block_steps away, or choose a family that samples block by block."
            )

    @classmethod
    def of_family(cls, family: Family) -> Denoising:
        """How the checkpoints of `family` are sampled."""
        build = Schedule.warped if family.warp else Schedule.unwarped
        first = family.first_block_steps and build(family.first_block_steps, family.shift)
        rolling = family.rollout == "rolling"
        return cls(build(family.denoising_steps, family.shift), first, family.context_noise, rolling)

    def of_block(self, block: int) -> Schedule:
        whole = self.first_block if block == 0 and self.first_block is not None else self.schedule
        return whole.last_steps(self.strength) if block < self.repainted_blocks else whole

    @property
    def window_blocks(self) -> int:
        """How many blocks are denoised together."""
        return len(self.schedule) if self.rolling else 1

    def calls(self, block: int) -> int:
        """Denoising calls between the end of the block before and the end of `block`: as many `StepDone` events."""
        return 1 if self.rolling and block > 0 else len(self.of_block(block))


class Compressor(Protocol):
    """Makes hidden tokens of a clean block: latents [1, 16, T, h, w] and its video [1, 3, T', H, W] (None without a
    decoder) -> [1, N_c, D].
    """

    def tokens(self, latents: Tensor, video: Tensor | None, first_block: bool) -> Tensor: ...


class Decoder(Protocol):
    """Decodes the blocks of one video in order: latents [1, 16, T, h, w] -> video [1, 3, T', H, W] in -1..1."""

    def push(self, latents: Tensor) -> Tensor: ...

    def snapshot(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


DECODER = "decoder."
"""Before the names of the decoder's tensors in a snapshot."""


@dataclass(frozen=True)
class Twins:
    """What makes the compressed twins of the blocks that leave the recent frames.

    With a decoder every block is decoded once, by the rollout, and its video goes on with the block. `waiting` has
    latents and video of the newest blocks, whose twins are still to come.
    """

    compressor: Compressor
    decoder: Decoder | None = None
    waiting: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def snapshot(self) -> dict[str, Tensor]:
        """What carries over to the next block besides the cache."""
        tensors = self.decoder.snapshot() if self.decoder else {}
        named = {f"{DECODER}{name}": tensor for name, tensor in tensors.items()}
        for block, (latents, video) in self.waiting.items():
            named[f"waiting.{block}.latents"] = latents
            if video is not None:
                named[f"waiting.{block}.video"] = video
        return named

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """The inverse of `snapshot`; tensors of other names are left alone."""
        if self.decoder:
            self.decoder.restore(
                {name.removeprefix(DECODER): t for name, t in tensors.items() if name.startswith(DECODER)}
            )
        self.waiting.clear()
        for name in tensors:
            if name.startswith("waiting.") and name.endswith(".latents"):
                block = int(name.split(".")[1])
                video = tensors.get(f"waiting.{block}.video")
                self.waiting[block] = tensors[name].to(device), video if video is None else video.to(device)


def rollout(
    model: CausalWan,
    text: list[TextKV],
    cache: KVCache,
    noise: NoiseSource,
    denoising: Denoising,
    blocks: int,
    known: Sequence[Tensor] = (),
    selections: Sequence[Selection] = (),
    twins: Twins | None = None,
    stop: int | None = None,
) -> Iterator[Event]:
    """Latent blocks 0..blocks-1. Blocks in `known` are not denoised again, only committed, which is exact.

    A cache that holds the first blocks already (with the `twins` that belong to it) goes on behind them. `stop` ends
    before that block, so that another rollout, under another prompt, can go on with the same cache.
    Where the policy selects, `selections` are those of the known blocks' `BlockDone` events; where it keeps a bank,
    `twins` makes what goes there. Raises PackForcingError when one of them is missing, or when a block has values that
    are not finite; the blocks before it stand.
    """
    require_parts(cache.partitions, known, selections, twins)
    for block in range(cache.next_block, blocks if stop is None else stop):
        reused = block < len(known)
        # A block that was given, not sampled, has no selection yet: it chooses when it is committed.
        view = cache.begin_block(selections[block] or None if reused and block < len(selections) else None)
        if reused:
            latents = known[block]
        else:
            latents = yield from denoise_block(model, text, view, noise, denoising.of_block(block), block)
        video = twins.decoder.push(latents) if twins and twins.decoder else None
        on_cpu = latents.cpu()
        if block + 1 < blocks:
            # Queued behind the copy, so that a GPU still works on the commit while the consumer has the block.
            commit_block(model, text, cache, view, latents, denoising.context_noise)
            if twins and cache.mid:
                twins.waiting[block] = latents, video
                commit_due_twin(model, text, cache, twins.compressor, twins.waiting)
        yield BlockDone(block, on_cpu, reused, view.selection(), video)


def require_parts(partitions: Partitions, known: Sized, selections: Sized, twins: Twins | None) -> None:
    """PackForcingError when the policy needs what was not given."""
    if partitions.bank and twins is None:
        raise PackForcingError(
            "This policy remembers compressed blocks, which takes a compressor and the VAE that it encodes with. "
            "Connect a VAE, or choose a policy without a bank."
        )
    if (partitions.bank or partitions.pruning) and len(selections) < len(known):
        raise PackForcingError(
            f"{len(known)} blocks are known but the selections of only {len(selections)} were given; without what each "
            "block had selected the render would go on differently. Give the `selection` of every known block."
        )


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
    require_finite(x, block)
    return x


def require_finite(x: Tensor, block: int) -> None:
    """PackForcingError when `x`, which was to become `block`, has NaN or infinity."""
    if not torch.isfinite(x).all():
        raise PackForcingError(
            f"Block {block} came out with values that are not finite (NaN or infinity). The blocks before it are kept. "
            "Try another dtype (bf16 instead of fp16), or check the checkpoint and its LoRAs."
        )


def commit_block(
    model: CausalWan, text: list[TextKV], cache: KVCache, view: BlockView, latents: Tensor, context_noise: float
) -> None:
    """Writes the keys and values of a clean block into the cache."""
    with cache.commit(view) as writer:
        model.commit(latents, frame_timesteps(context_noise, latents), text, writer)


def commit_due_twin(
    model: CausalWan,
    text: list[TextKV],
    cache: KVCache,
    compressor: Compressor,
    waiting: dict[int, tuple[Tensor, Tensor | None]],
) -> None:
    """Brings the twin of the block that has left the recent frames into the bank, if one has.

    `waiting` has latents and video of the newest blocks; what is needed no more is taken out.
    """
    if cache.due_twin is None:
        return
    due = cache.due_twin
    latents, video = waiting[due]
    for block in [block for block in waiting if block <= due]:
        del waiting[block]
    tokens = compressor.tokens(latents, video, due == 0)
    with cache.commit_twin() as writer:
        model.commit_tokens(tokens, torch.zeros(tokens.shape[0], 1), text, writer)


def recache(
    model: CausalWan, text: list[TextKV], cache: KVCache, latents: Mapping[int, Tensor], context_noise: float = 0.0
) -> None:
    """Commits the blocks in view again with another `text` (LongLive's re-caching at a prompt change).

    `latents` [1, 16, frames_per_block, h, w] by block must have those of `cache.blocks_in_view()`. Equal to a fresh
    cache that was committed with these blocks alone; a bank keeps its blocks, made under the old text.
    """
    missing = [block for block in cache.blocks_in_view() if block not in latents]
    if missing:
        raise PackForcingError(f"Re-caching needs the latents of blocks {missing}, which are in view.")
    for block in cache.restart():
        commit_block(model, text, cache, cache.begin_block(), latents[block], context_noise)


def frame_timesteps(timestep: float, latents: Tensor) -> Tensor:
    """[B, F]: the same timestep for every latent frame of `latents`."""
    return torch.full((latents.shape[0], latents.shape[2]), timestep, dtype=torch.float32)
