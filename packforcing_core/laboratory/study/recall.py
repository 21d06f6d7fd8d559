"""Recall questions: an object that was seen and has been out of sight returns. Does it have the same colour?

The video before is given, not sampled: a scene is drawn, encoded and committed block by block, so no drift or other
error is counted. Its object comes into sight when the sink is full, has left the recent frames when sampling starts,
and must return in the sampled blocks. The prompt does not name its colour. So a right answer comes from what is kept
between sink and recent frames, or from chance: the world has five colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...geometry import pixel_frames
from ...miniature.world import WIDTH
from ..evaluation.little_world.checker import MUST_SEE, read_video
from ..evaluation.little_world.draw import draw
from ..evaluation.little_world.prompt import describe
from ..evaluation.little_world.scene import MARGIN, Scene, sample_scene
from ..evaluation.little_world.truth import truth_at
from .rows import FRAMES_PER_BLOCK, SINK

QUESTION_KEY = 2604
"""With the seed, decides the scene."""

AWAY: Mapping[str, int] = {"soon": 28, "late": 112}
"""Frames that the object is out of sight: 2 and 7 seconds. In the first case the newest four compressed blocks of the
base show it, which the model knows from training; in the second they do not.
"""
MADE_BLOCKS = 2
COMES = pixel_frames(SINK)
"""The first frame at which the object may come into sight, after the sink."""


@dataclass(frozen=True)
class Question:
    """A scene of the seed's thing, out of sight for AWAY[away] frames."""

    seed: int
    away: str

    @property
    def name(self) -> str:
        return f"recall {self.away} {self.seed}"

    @cached_property
    def scene(self) -> Scene:
        return self._asked[0]

    @property
    def block(self) -> int:
        """The block in which the object returns; all blocks before it are given."""
        return self._asked[1]

    @property
    def prompt(self) -> str:
        return describe(self.scene)

    @cached_property
    def areas(self) -> tuple[float, ...]:
        """Mean visible area of the object in each given block, in square pixels."""
        areas = [truth_at(self.scene, f)[0].area if f >= COMES else 0.0 for f in range(_first(self.block))]
        return tuple(float(np.mean(areas[_first(b) : _first(b + 1)])) for b in range(self.block))

    @property
    def showing(self) -> tuple[int, ...]:
        """The given blocks that show enough of it to tell its colour, in order."""
        return tuple(block for block, area in enumerate(self.areas) if area >= MUST_SEE)

    @property
    def whole(self) -> int:
        """The newest block that shows the whole object in every frame, or as much of it as any block does."""
        return max(block for block, area in enumerate(self.areas) if area > 0.98 * max(self.areas))

    @cached_property
    def _asked(self) -> tuple[Scene, int]:
        rng = np.random.default_rng([QUESTION_KEY, self.seed])
        scene = sample_scene(rng, "return")
        while scene.things[0].named:
            scene = sample_scene(rng, "return")
        return _timed(scene, AWAY[self.away])


def _timed(scene: Scene, away: int) -> tuple[Scene, int]:
    """The scene with its object out of sight for `away` frames, timed so that it returns at the start of a block; and
    that block.
    """
    [thing] = scene.things
    path, hidden = thing.x, away * thing.x.speed / 2
    # What sticks out of the frame is at most MARGIN radii on either side of the centre.
    beyond = MARGIN * thing.radius + hidden
    leaves_left = path.low < 0
    path = replace(path, low=-beyond) if leaves_left else replace(path, high=WIDTH + beyond)
    period = 2 * (path.high - path.low) / path.speed
    block = next(b for b in range(1 << 10) if _first(b) - period >= COMES)
    # At its farthest point, half the time away before the thing is back.
    farthest = _first(block) - away / 2
    start = 0.0 if leaves_left else path.high - path.low
    path = replace(path, start=(start - path.speed * farthest) % (2 * (path.high - path.low)))
    return replace(scene, things=(replace(thing, x=path),), placed=False), block


def _first(block: int) -> int:
    """The first pixel frame of a block."""
    return pixel_frames(block * FRAMES_PER_BLOCK)


def drawn(question: Question) -> Tensor:
    """The scene up to the sampled blocks: video [1, 3, T, H, W] in -1..1."""
    before = draw(replace(question.scene, things=()), COMES)  # Where its thing would already have come and gone.
    pixels = torch.from_numpy(np.concatenate([before, draw(question.scene, _first(question.block))[COMES:]]))
    return pixels.permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1)


def recalled(question: Question, frames: np.ndarray) -> dict[str, float]:
    """What the frames uint8 [T, 64, 128, 3] that were made show: `back` is 1 where anything comes into sight, and
    `recall` where most of it has the colour of the thing. Neither asks when and where it comes back.
    """
    colours = Counter(seen.colour for reading in read_video(frames) for seen in reading.things if seen.area >= MUST_SEE)
    most = dict(colours.most_common(1))
    return {"recall": float(question.scene.things[0].colour in most), "back": float(bool(most))}
