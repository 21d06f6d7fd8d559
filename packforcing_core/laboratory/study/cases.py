"""The prompts of the study: one prompt of the toy world per seed, the same for all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..evaluation.little_world.prompt import describe
from ..evaluation.little_world.scene import Scene, sample_scene

PROMPT_KEY = 2603
"""With the seed, decides the prompt."""

WORLDS: Mapping[str, tuple[str, Callable[[Scene], bool]]] = {
    "one": ("bounce", lambda scene: scene.placed and len(scene.things) == 1),
    "two": ("bounce", lambda scene: scene.placed and len(scene.things) == 2),
    "return": ("return", lambda scene: scene.placed and not scene.things[0].named),
    "pan": ("pan", lambda scene: True),
}
"""Name to the kind of scene and what else it must be. In `return` the prompt keeps the colour for itself."""
MEMORY_WORLDS = ("return", "pan")
"""Worlds in which the prompt does not say what returns, so that only recall can tell."""


@dataclass(frozen=True)
class Case:
    """A video to render: the seed of its noise, its prompt, and the world of the prompt."""

    seed: int
    world: str
    prompt: str

    @property
    def name(self) -> str:
        return f"seed {self.seed}"


def case_of(seed: int) -> Case:
    """The case of a seed. The worlds alternate, so that a multiple of four seeds has equally many of each."""
    world = list(WORLDS)[seed % len(WORLDS)]
    kind, fits = WORLDS[world]
    rng = np.random.default_rng([PROMPT_KEY, seed])
    scene = sample_scene(rng, kind)
    while not fits(scene):
        scene = sample_scene(rng, kind)
    return Case(seed, world, describe(scene))
