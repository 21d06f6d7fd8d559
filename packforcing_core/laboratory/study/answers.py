"""A row's answer to a question: what is given is encoded and decoded once, and committed anew by every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...geometry import pixel_frames
from ...miniature.world import FPS
from ...sampler.start import Start
from ...vae.streaming import StreamingDecoder, encode
from .recall import MADE_BLOCKS, Question, drawn, recalled
from .rows import FRAMES_PER_BLOCK, Row
from .subject import Subject, film_frames


@dataclass(frozen=True)
class Given:
    """What comes before the blocks that are made: `latents` [1, 16, F, h, w], the decoded `videos` of their blocks, and
    the decoder as it is then.
    """

    latents: Tensor
    videos: Sequence[Tensor]
    decoder: StreamingDecoder


def given_by(subject: Subject, question: Question) -> Given:
    """Draws, encodes and decodes the film so far."""
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


class Answers:
    """Answers of a subject, which keeps what the newest question gives: the rows come one after the other."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self._newest: tuple[Question, Given] | None = None

    def to(self, question: Question, row: Row) -> dict[str, float]:
        """`recalled` of the blocks that the row's memory makes."""
        if self._newest is None or self._newest[0] != question:
            self._newest = question, given_by(self.subject, question)
        return answer(self.subject, row, question, self._newest[1])


def answer(subject: Subject, row: Row, question: Question, given: Given) -> dict[str, float]:
    """`recalled` of the blocks that the row's memory makes of what is given."""
    frames = pixel_frames((question.block + MADE_BLOCKS) * FRAMES_PER_BLOCK)
    recipe = replace(subject.recipe(row, question.seed, frames / FPS), start=Start(given=given.latents))
    film = film_frames(subject, row, question.prompt, recipe, Replayed(given))
    return recalled(question, film[pixel_frames(given.latents.shape[2]) :])
