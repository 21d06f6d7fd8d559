"""Training clips of the toy world, drawn on the fly from (seed, step, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...errors import PackForcingError
from ...geometry import pixel_frames
from ..evaluation.little_world.draw import draw
from ..evaluation.little_world.prompt import describe
from ..evaluation.little_world.scene import Scene, sample_scene
from ..evaluation.little_world.truth import truth_at

IN_SIGHT = 100.0
"""Visible area in square pixels from which a block counts as showing an object."""
OUT_OF_SIGHT = 1.0
"""Visible area in square pixels below which a block counts as not showing an object."""
HIDDEN_FRAMES, HIDDEN_BLOCKS = 4, 5
"""Latent frames per block and blocks per clip for which the world `hidden` is defined."""


def areas_in_sight(scene: Scene, frames_per_block: int, blocks: int) -> list[float]:
    """Returns, for each block of a clip, the largest visible area of any object in square pixels."""
    ends = [pixel_frames(frames_per_block * block) for block in range(blocks + 1)]
    shown = [max((seen.area for seen in truth_at(scene, frame)), default=0.0) for frame in range(ends[-1])]
    return [max(shown[first:end]) for first, end in pairwise(ends)]


def returning_block(areas: Sequence[float]) -> int | None:
    """Returns the index of the block in which an object returns after at least one block out of sight; None if there is
    none.
    """
    return next(
        (
            block
            for block in range(2, len(areas))
            if areas[block] >= IN_SIGHT and areas[block - 1] < OUT_OF_SIGHT and max(areas[: block - 1]) >= IN_SIGHT
        ),
        None,
    )


def _hidden(scene: Scene) -> bool:
    return (
        not scene.things[0].named and returning_block(areas_in_sight(scene, HIDDEN_FRAMES, HIDDEN_BLOCKS)) is not None
    )


WORLDS: Mapping[str, tuple[str, Callable[[Scene], bool]]] = {
    "one": ("bounce", lambda scene: len(scene.things) == 1),
    "two": ("bounce", lambda scene: len(scene.things) == 2),
    "return": ("return", lambda scene: True),
    "unnamed": ("return", lambda scene: not scene.things[0].named),
    "hidden": ("return", _hidden),
    "pan": ("pan", lambda scene: True),
}
"""The worlds to choose from: the kind of a scene, and a condition that it must fulfil. In `unnamed` the prompt does not
name the returning object; in `hidden`, in addition, at least one block in between shows nothing of it.
"""


@dataclass(frozen=True)
class Worlds:
    """A mix of WORLDS by name, with relative frequencies."""

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        known = set(self.weights) <= set(WORLDS)
        if not known or min(self.weights.values(), default=0) < 0 or not sum(self.weights.values()) > 0:
            raise PackForcingError(
                f"Got worlds {dict(self.weights)}; expected some of {', '.join(WORLDS)} with weights of 0 or more, one "
                'above 0, for example "one=3,two=3,return=2,pan=2".'
            )

    @classmethod
    def parse(cls, text: str) -> Worlds:
        """Parses a mix such as "one=3,two=3,return=2,pan=2". Raises PackForcingError if it is not one."""
        pairs = [part.partition("=") for part in text.split(",")]
        try:
            return cls({name.strip(): float(weight) for name, _, weight in pairs})
        except ValueError as error:
            raise PackForcingError(
                f'Got worlds "{text}"; expected names with weights, for example "one=3,two=3,return=2,pan=2".'
            ) from error

    def sample(self, rng: np.random.Generator) -> Scene:
        """Draws a scene of one of the worlds with `rng`."""
        weights = np.array(list(self.weights.values()), dtype=np.float64)
        kind, fits = WORLDS[str(rng.choice(list(self.weights), p=weights / weights.sum()))]
        while True:
            scene = sample_scene(rng, kind)
            if fits(scene):
                return scene


@dataclass(frozen=True)
class Clips:
    """A batch of clips: `video` [B, 3, T, H, W] in -1..1, with the scenes and their prompts."""

    video: Tensor
    scenes: tuple[Scene, ...]
    prompts: tuple[str, ...]


def draw_clips(seed: int, step: int, indices: Iterable[int], frames: int, worlds: Worlds | None = None) -> Clips:
    """Draws the clips `indices` of one step from the mix `worlds`; None draws the toy world's own mix. Clip i depends
    only on (seed, step, i).
    """
    sample = worlds.sample if worlds else sample_scene
    scenes = tuple(sample(np.random.default_rng((seed, step, index))) for index in indices)
    video = torch.stack([torch.from_numpy(draw(scene, frames)) for scene in scenes])
    pixels = video.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
    return Clips(pixels, scenes, tuple(describe(scene) for scene in scenes))
