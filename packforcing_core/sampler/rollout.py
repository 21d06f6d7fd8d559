"""The block-by-block rollout: denoise a block given the history, commit it, continue with the next.

A lazy iterator of events. Whoever consumes it owns progress, previews and cancellation; between two events nothing
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..cache.cache import BlockView, KVCache
from ..cache.partitions import Partitions
from ..errors import PackForcingError
from ..history import History
from ..model.causal import CausalWan, TextKV
from ..queued import Moment, SideStream
from ..text.script import Script
from ..vae.decoders import Decoder, push_block
from .denoising import BlockDone, Denoising, Event, StepDone, denoise_block, frame_timesteps
from .noise import NoiseSource
from .rolling import RollingBlocks


class Compressor(Protocol):
    """Makes hidden tokens of a clean block: latents [1, 16, T, h, w] and its video [1, 3, T', H, W] (None without a
    decoder) -> [1, N_c, D].
    """

    def tokens(self, latents: Tensor, video: Tensor | None, first_block: bool) -> Tensor: ...


@dataclass(frozen=True)
class Compression:
    """What makes the compressed tokens of a block. With a decoder every block is decoded once, by the rollout, and its
    video goes on with the block, and the work of both is queued `beside` the pass over the block that follows it.
    `waiting` has the tokens of the newest blocks, whose pass is still to come.
    """

    compressor: Compressor
    decoder: Decoder | None = None
    beside: SideStream = field(default_factory=SideStream)
    waiting: dict[int, Tensor] = field(default_factory=dict)


View = TypeVar("View", contravariant=True)


class Commits(Protocol[View]):
    """What a commit asks of a cache: a writer for the block of one of its views (`KVCache`, and that of training)."""

    def commit(self, view: View) -> AbstractContextManager[History]: ...


Known = Callable[[int], BlockDone | None]
"""A block that was finished in an earlier run, or None where it is still to be made."""


class BlockSampler(Protocol):
    """Makes the next block."""

    def make(
        self, text: list[TextKV], block: int, behind_cut: bool
    ) -> Generator[StepDone, None, tuple[BlockDone, BlockView | None]]:
        """Yields each step as it is done; returns the block (latents on the model's device), and the view to commit."""

    def passed(self, done: BlockDone) -> None:
        """Hears of a block that was known."""


def rollout(
    model: CausalWan,
    prompts: Tensor | Script,
    cache: KVCache,
    noise: NoiseSource,
    denoising: Denoising,
    blocks: int,
    known: Known = lambda block: None,
    compression: Compression | None = None,
    *,
    stop: int | None = None,
    decoded_from: int = 0,
) -> Generator[Event, None, None]:
    """Latent blocks from where the cache stands to `blocks`-1, each under its text in `prompts` (embeddings
    [1, L, text_dim], or a script of several over time).

    Blocks that are `known` are not denoised again, only committed, with what they had selected and the compressed
    tokens they had: that is exact. The last block is not committed, for nothing reads it. `stop` ends before that
    block, so that another rollout can continue with the same cache. Blocks from `decoded_from` on are decoded, where
    `compression` has a decoder, warmed up; earlier ones must be known and bring their tokens.

    Raises PackForcingError when the policy needs a `compression` and none is given, when prompts change in a rolling
    rollout, or when a block has values that are not finite; the blocks before it stand.
    """
    script, sampler = Script.of(prompts), _sampler(model, cache, noise, denoising)
    require_parts(cache.partitions, compression)
    require_followable(script, denoising)
    recent: dict[int, Tensor] = {}
    for stretch in script.stretches(cache.next_block, blocks if stop is None else stop):
        text = model.encode_text(stretch.context)
        if stretch.change == "cut":
            cache.cut()
        elif stretch.recache or stretch.change == "flush":
            seen, flush = _in_view(cache, recent, known), stretch.change == "flush"
            recache(model, text, cache, seen, denoising.context_noise, flush=flush)
        for block in range(stretch.first, stretch.end):
            behind_cut = stretch.change == "cut" and block == stretch.first
            found, view = known(block), None
            if found is None:
                made, view = yield from sampler.make(text, block, behind_cut)
            else:
                made = replace(found, reused=True)
                sampler.passed(made)
            done, moment = _compressed(made, cache, compression, block >= decoded_from, behind_cut)
            if block + 1 < blocks:
                # Queued before the host waits for what is made beside it: a GPU works on both, and on this while the
                # consumer has the block.
                view = view or cache.begin_block(made.selection or None)
                commit_block(model, text, cache, view, made.latents, denoising.context_noise)
                # A block that was given, not sampled, chose when it was committed.
                done = replace(done, selection=made.selection or view.selection())
                if compression and cache.mid:
                    commit_due_block(model, text, cache, compression.waiting)
            if script.recaches:
                recent[block] = done.latents
                for old in set(recent).difference(cache.blocks_in_view(), (block,)):
                    del recent[old]
            _there(moment)
            yield done


class SingleBlocks:
    """One block after the other, each denoised on its own."""

    def __init__(self, model: CausalWan, cache: KVCache, noise: NoiseSource, denoising: Denoising):
        self._model, self._cache, self._noise, self._denoising = model, cache, noise, denoising

    def make(
        self, text: list[TextKV], block: int, behind_cut: bool
    ) -> Generator[StepDone, None, tuple[BlockDone, BlockView]]:
        view, schedule = self._cache.begin_block(), self._denoising.of_block(block, behind_cut)
        latents = yield from denoise_block(self._model, text, view, self._noise, schedule, block)
        return BlockDone(block, latents, selection=view.selection()), view

    def passed(self, done: BlockDone) -> None: ...


def _sampler(model: CausalWan, cache: KVCache, noise: NoiseSource, denoising: Denoising) -> BlockSampler:
    kind = RollingBlocks if denoising.rolling else SingleBlocks
    return kind(model, cache, noise, denoising)


def _in_view(cache: KVCache, recent: Mapping[int, Tensor], known: Known) -> dict[int, Tensor]:
    """Latents of the blocks in view, those of an earlier rollout from what is known."""
    found: dict[int, Tensor] = {}
    for block in cache.blocks_in_view():
        if block in recent:
            found[block] = recent[block]
        elif done := known(block):
            found[block] = done.latents
    return found


def _compressed(
    made: BlockDone, cache: KVCache, compression: Compression | None, decoded: bool, behind_cut: bool
) -> tuple[BlockDone, Moment]:
    """The block with latents on the CPU and, where there is a `compression`, its video and its compressed tokens:
    queued, and there at the moment that is returned.
    """
    done = replace(made, latents=made.latents.cpu())
    if compression is None:
        return done, ()
    tokens = made.tokens
    with compression.beside.beside(made.latents):
        decoder = compression.decoder if decoded else None
        video = push_block(decoder, made.latents, behind_cut) if decoder else None
        if cache.mid and made.block * cache.partitions.frames_per_block >= cache.partitions.sink_frames:
            if tokens is None:
                tokens = compression.compressor.tokens(made.latents, video, made.block == 0)
            compression.waiting[made.block] = tokens
            tokens = tokens.to("cpu", non_blocking=True)
    if made.block in compression.waiting:
        compression.beside.hand_over(compression.waiting[made.block])
    return replace(done, video=video, tokens=tokens), compression.beside.mark()


def _there(moment: Moment) -> None:
    """The host waits for `moment`, and with it everything that is queued from here on."""
    for event in moment:
        event.synchronize()


def require_parts(partitions: Partitions, compression: Compression | None) -> None:
    """PackForcingError when the policy needs what was not given."""
    if partitions.bank and compression is None:
        raise PackForcingError(
            "This policy keeps compressed blocks, which needs a compressor and the VAE that it encodes with. "
            "Connect a VAE, or choose a policy without a bank."
        )


def require_followable(script: Script, denoising: Denoising) -> None:
    """PackForcingError for prompts that change where several blocks are denoised together."""
    if denoising.rolling and len(script.cues) > 1:
        raise PackForcingError(
            f"Got {len(script.cues)} prompts over time for a rolling rollout, whose blocks are denoised together under "
            "one prompt. Give one prompt, or choose a preset that samples block by block."
        )


def commit_block(
    model: CausalWan, text: list[TextKV], cache: Commits[View], view: View, latents: Tensor, context_noise: float
) -> None:
    """Writes the keys and values of a clean block into the cache."""
    with cache.commit(view) as writer:
        model.commit(latents, frame_timesteps(context_noise, latents), text, writer)


def commit_due_block(model: CausalWan, text: list[TextKV], cache: KVCache, waiting: dict[int, Tensor]) -> None:
    """Brings the block that has left the recent frames into the bank, compressed, if one has.

    `waiting` has the compressed tokens [1, N_c, D] of the newest blocks; what is needed no more is taken out.
    """
    if cache.due_block is None:
        return
    tokens = waiting[cache.due_block]
    for block in [block for block in waiting if block <= cache.due_block]:
        del waiting[block]
    with cache.commit_compressed() as writer:
        model.commit_tokens(tokens, torch.zeros(tokens.shape[0], 1), text, writer)


def recache(
    model: CausalWan,
    text: list[TextKV],
    cache: KVCache,
    latents: Mapping[int, Tensor],
    context_noise: float = 0.0,
    *,
    flush: bool = False,
) -> None:
    """Commits the blocks in view again with another `text` (LongLive's re-caching at a prompt change); with `flush`
    those of the sink and the newest alone, and all others are forgotten.

    `latents` [1, 16, frames_per_block, h, w] by block must have those of `cache.blocks_in_view()`. Equal to a fresh
    cache that was committed with these blocks alone; a bank keeps its blocks, made under the old text.
    """
    missing = [block for block in cache.blocks_in_view() if block not in latents]
    if missing:
        raise PackForcingError(f"Re-caching needs the latents of blocks {missing}, which are in view.")
    for block in cache.restart(flush):
        commit_block(model, text, cache, cache.begin_block(), latents[block], context_noise)
