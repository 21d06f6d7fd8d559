"""Answers to recall questions: the given video is encoded and decoded once, and every row commits it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...cache.cache import KVCache
from ...cache.ledger import Selection
from ...geometry import pixel_frames
from ...miniature.world import FPS
from ...recipe.recipe import Recipe
from ...render.parts import build_cache
from ...sampler.denoising import BlockDone
from ...sampler.rollout import Decoder, rollout
from ...sampler.start import Start
from ...vae.streaming import StreamingDecoder, encode, to_frames
from .recall import MADE_BLOCKS, Question, drawn, recalled
from .rows import FRAMES_PER_BLOCK, SINK, Row
from .subject import Subject, compression_of


@dataclass(frozen=True)
class Given:
    """What comes before the sampled blocks: `latents` [1, 16, F, h, w], the decoded `videos` of their blocks, and the
    state of the decoder.
    """

    latents: Tensor
    videos: Sequence[Tensor]
    decoder: StreamingDecoder


def given_by(subject: Subject, question: Question) -> Given:
    """Draws, encodes and decodes the video so far."""
    with torch.inference_mode():
        latents = encode(subject.vae, drawn(question)).float()
        decoder = StreamingDecoder(subject.vae)
        videos = [decoder.push(block) for block in latents.split(FRAMES_PER_BLOCK, dim=2)]
        return Given(latents, videos, decoder)


class Replayed:
    """A decoder that has the videos of the first blocks already."""

    def __init__(self, given: Given):
        self._decoder = given.decoder.fork()
        self._videos = iter(given.videos)

    def push(self, latents: Tensor) -> Tensor:
        video = next(self._videos, None)
        return self._decoder.push(latents) if video is None else video

    def reset(self) -> None:
        self._decoder.reset()
        self._videos = iter(())


class Answers:
    """Answers of a subject. It caches the given video of the newest question, because rows follow each other."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self._newest: tuple[Question, Given] | None = None

    def to(self, question: Question, row: Row) -> dict[str, float]:
        """`recalled` for the blocks that the row's policy samples."""
        if self._newest is None or self._newest[0] != question:
            self._newest = question, given_by(self.subject, question)
        return answer(self.subject, row, question, self._newest[1])


def answer(subject: Subject, row: Row, question: Question, given: Given) -> dict[str, float]:
    """`recalled` for the blocks that the row's policy samples after the given ones, and `found` if it selects
    blocks.
    """
    if row.oracle == "whole":
        given = shortened(given, (*range(SINK // FRAMES_PER_BLOCK), question.whole, question.block - 1))
    blocks = continued(subject, row, question, given, MADE_BLOCKS)
    return {**recalled(question, frames_of(blocks)), **found(question, blocks[0].seen)}


def continued(subject: Subject, row: Row, question: Question, given: Given, blocks: int) -> list[BlockDone]:
    """The next `blocks` blocks after the given video, with their videos, as the row's policy samples them."""
    block = given.latents.shape[2] // FRAMES_PER_BLOCK
    length = pixel_frames((block + blocks) * FRAMES_PER_BLOCK)
    recipe = replace(subject.recipe(row, question.seed, length / FPS), start=Start(given=given.latents))
    told = partial(told_selection, question) if row.oracle == "selected" else None
    return list(made_blocks(subject, row, question.prompt, recipe, Replayed(given), block, told))


def frames_of(blocks: Sequence[BlockDone]) -> np.ndarray:
    """The blocks' frames uint8 [T, 64, 128, 3]."""
    return np.concatenate([to_frames(done.video) for done in blocks if done.video is not None])


def found(question: Question, selection: Selection) -> dict[str, float]:
    """Of the layers' selections: `found`, the share of layers with a block that shows the object, and `hit`, the share
    of such blocks. Empty if nothing is selected.
    """
    if not any(len(choice) for choice in selection):
        return {}
    right = [[block in question.showing for block in choice] for choice in selection]
    hit = [np.mean(own) for own in right]
    return {"found": float(np.mean([any(own) for own in right])), "hit": float(np.mean(hit))}


def shortened(given: Given, blocks: Sequence[int]) -> Given:
    """The given video reduced to these blocks; it continues from the last one's frames as before."""
    latents = given.latents.split(FRAMES_PER_BLOCK, dim=2)
    chosen = torch.cat([latents[block] for block in blocks], dim=2)
    return Given(chosen, [given.videos[block] for block in blocks], given.decoder)


def told_selection(question: Question, blocks: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the bank's `blocks`: the newest that shows the whole object, and the newest that do not show it, which
    tell that it has not just left.
    """
    others = [block for block in blocks if block not in question.showing]
    right = [block for block in blocks if block in question.showing and block != question.whole]
    rest = [*right, *others][len(right) + len(others) - count + 1 :]
    return tuple(sorted((question.whole, *rest)))


def made_blocks(
    subject: Subject,
    row: Row,
    prompt: str,
    recipe: Recipe,
    decoder: Decoder,
    first: int,
    told: Callable[[Sequence[int], int], Sequence[int]] | None = None,
) -> Iterator[BlockDone]:
    """The blocks from `first` on, with their videos, after those that the recipe has been given. What they select of
    the bank's blocks they are `told`, given how many; otherwise they choose.
    """
    cache, compression = build_cache(subject.model, recipe), compression_of(subject, row, decoder)
    known, blocks = {done.block: done for done in recipe.given}, recipe.geometry.blocks
    make = partial(rollout, subject.model, subject.texts([prompt]), cache, recipe.noise(), recipe.denoising, blocks)
    with torch.inference_mode():
        for event in make(known.get, compression, stop=first):
            if compression is None and isinstance(event, BlockDone):
                decoder.push(event.latents)
        begin = cache.begin_block
        if told:
            # For this cache only: the selection is given, not computed.
            cache.begin_block = lambda selection=None, blocks=1: begin(  # type: ignore[method-assign]
                selection or _told(cache, told), blocks
            )
        for event in make(known.get, compression):
            if isinstance(event, BlockDone):
                yield event if event.video is not None else replace(event, video=decoder.push(event.latents))


def _told(cache: KVCache, told: Callable[[Sequence[int], int], Sequence[int]]) -> Selection:
    return (told(sorted(cache.banked), len(cache.window().mid_positions)),) * cache.shape.layers
