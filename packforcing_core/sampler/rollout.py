"""The block-by-block rollout: denoise a block given the past, commit it, continue with the next.

It is a lazy iterator of events. The consumer handles progress, previews and cancellation; between two events nothing
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
from ..queued import Moment, SideStream, to_device
from ..text.script import Script
from ..vae.decoders import HELD_FRAMES, Decoder, push_block
from .denoising import BlockDone, Denoising, Event, StepDone, denoise_block, frame_timesteps
from .noise import NoiseSource
from .rolling import RollingBlocks


class Compressor(Protocol):
    """Makes compressed tokens of a clean block: latents [1, 16, T, h, w] and its video [1, 3, T', H, W] (None without a
    decoder) -> [1, N_c, D].
    """

    def tokens(self, latents: Tensor, video: Tensor | None, first_block: bool) -> Tensor: ...


@dataclass(frozen=True)
class Compression:
    """Makes the compressed tokens of blocks. With a decoder the rollout decodes each block once and passes its video
    on; decoding and compression are queued on `stream`, beside the next block's pass. `waiting` holds the tokens of the
    newest blocks, which are not in the bank yet.
    """

    compressor: Compressor
    decoder: Decoder | None = None
    stream: SideStream = field(default_factory=SideStream)
    waiting: dict[int, Tensor] = field(default_factory=dict)


View = TypeVar("View", contravariant=True)


class Commits(Protocol[View]):
    """The part of a cache that a commit needs: a writer for one of its views (`KVCache`, and the training cache)."""

    def commit(self, view: View) -> AbstractContextManager[History]: ...


Known = Callable[[int], BlockDone | None]
"""A block that was finished in an earlier run, or None if it has to be sampled."""


class BlockSampler(Protocol):
    """Makes the next block."""

    def make(
        self, text: list[TextKV], block: int, behind_cut: bool
    ) -> Generator[StepDone, None, tuple[BlockDone, BlockView | None]]:
        """Yields each step; returns the block (latents on the model's device) and the view to commit."""

    def passed(self, done: BlockDone) -> None:
        """Called for a block that was known already."""

    def expect(self, block: int) -> None:
        """Prepares what `block` needs from the host, while the device still works on the one before."""


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
    """Makes latent blocks from the cache's next block to `blocks`-1, each with its text in `prompts` (embeddings [1, L,
    text_dim], or a script of several over time).

    Blocks that are `known` are not denoised again, only committed, with their recorded selection and compressed tokens;
    the result is exact. The last block is not committed, because nothing reads it. `stop` ends the rollout before that
    block, so that another rollout can continue with the same cache. If `compression` has a decoder (warmed up), blocks
    from `decoded_from` on are decoded; earlier ones must be known and have their tokens.

    Raises PackForcingError if the policy needs a `compression` and there is none, if prompts change in a rolling
    rollout, or if a block has values that are not finite. Blocks already yielded stay valid.
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
                made = made.to_select_again() if cache.selects_again else made
            else:
                made = replace(found, reused=True)
                sampler.passed(made)
            done, moment = _compressed(made, cache, compression, block >= decoded_from, behind_cut)
            if block + 1 < blocks:
                # Queued before the host waits for the work beside it. A GPU runs both, and continues while the consumer
                # handles the block.
                view = view or cache.begin_block(made.selection or None)
                commit_block(model, text, cache, view, made.latents, denoising.context_noise)
                # A block that was given, or that selects again, made its selection when it was committed.
                done = replace(done, selection=made.selection or view.selection())
                if compression and cache.mid:
                    commit_due_block(model, text, cache, compression.waiting)
                if found is None:
                    sampler.expect(block + 1)
            if script.recaches:
                _remember(recent, done, cache)
            _there(moment)
            yield done


class SingleBlocks:
    """Denoises one block after the other."""

    def __init__(self, model: CausalWan, cache: KVCache, noise: NoiseSource, denoising: Denoising):
        self._model, self._cache, self._noise, self._denoising = model, cache, noise, denoising
        self._drawn: dict[int, Tensor] = {}

    def make(
        self, text: list[TextKV], block: int, behind_cut: bool
    ) -> Generator[StepDone, None, tuple[BlockDone, BlockView]]:
        view, schedule = self._cache.begin_block(), self._denoising.of_block(block, behind_cut)
        drawn = self._drawn.pop(block, None)
        latents = yield from denoise_block(self._model, text, view, self._noise, schedule, block, drawn)
        return BlockDone(block, latents, selection=view.selection()), view

    def passed(self, done: BlockDone) -> None: ...

    def expect(self, block: int) -> None:
        self._drawn = {block: to_device(self._noise(block, 0), self._model.device)}


def _sampler(model: CausalWan, cache: KVCache, noise: NoiseSource, denoising: Denoising) -> BlockSampler:
    kind = RollingBlocks if denoising.rolling else SingleBlocks
    return kind(model, cache, noise, denoising)


def _remember(recent: dict[int, Tensor], done: BlockDone, cache: KVCache) -> None:
    """Keeps the block's latents in `recent`, and of those before only the blocks in view."""
    recent[done.block] = done.latents
    for old in set(recent).difference(cache.blocks_in_view(), (done.block,)):
        del recent[old]


def _in_view(cache: KVCache, recent: Mapping[int, Tensor], known: Known) -> dict[int, Tensor]:
    """Latents of the blocks in view; those of an earlier rollout come from `known`."""
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
    """The block with latents on the CPU and, with a `compression`, its video and its compressed tokens. Their work is
    queued on the device and complete at the returned moment.
    """
    done = replace(made, latents=made.latents.cpu())
    if compression is None:
        return done, ()
    tokens = made.tokens
    with compression.stream.beside(made.latents):
        decoder = compression.decoder if decoded else None
        video = push_block(decoder, made.latents, behind_cut) if decoder else None
        # Counted since the last cut: the sink of a scene is never compressed.
        if cache.mid and cache.committed_frames >= cache.partitions.sink_frames:
            if tokens is None:
                own = video[:, :, HELD_FRAMES:] if video is not None and behind_cut else video
                tokens = compression.compressor.tokens(made.latents, own, behind_cut or made.block == 0)
            compression.waiting[made.block] = tokens
            tokens = tokens.to("cpu", non_blocking=True)
    if made.block in compression.waiting:
        compression.stream.hand_over(compression.waiting[made.block])
    return replace(done, video=video, tokens=tokens), compression.stream.mark()


def _there(moment: Moment) -> None:
    """Makes the host, and all work queued after this call, wait for `moment`."""
    for event in moment:
        event.synchronize()


def require_parts(partitions: Partitions, compression: Compression | None) -> None:
    """Raises PackForcingError if the policy needs a compressor and there is none."""
    if partitions.bank and compression is None:
        raise PackForcingError(
            "This policy keeps compressed blocks, which needs a compressor and its VAE. "
            "Connect a VAE, or choose a policy without a bank."
        )


def require_followable(script: Script, denoising: Denoising) -> None:
    """Raises PackForcingError for prompts that change while several blocks are denoised together."""
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
    """If a block has left the recent frames, compresses it into the bank.

    `waiting` holds the compressed tokens [1, N_c, D] of the newest blocks; tokens that are not needed again are
    removed.
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
    """Commits the blocks in view again with another `text` (LongLive's re-caching at a prompt change). With `flush`,
    only those of the sink and the newest block; all others are dropped.

    `latents` must hold the latents [1, 16, frames_per_block, h, w] of each of `cache.blocks_in_view()`. The result
    equals a fresh cache with only these blocks committed, except that a bank keeps its blocks and MemRoPE its averages,
    which were made with the old text.
    """
    missing = [block for block in cache.blocks_in_view() if block not in latents]
    if missing:
        raise PackForcingError(f"Re-caching needs the latents of blocks {missing}, which are in view.")
    for block in cache.restart(flush):
        commit_block(model, text, cache, cache.begin_block(), latents[block], context_noise)
