"""Generates the prompts of scenes."""

from __future__ import annotations

import numpy as np

from ....miniature.world import COLUMNS, HEIGHT, ROWS, WIDTH
from .scene import Scene, Thing


def describe(scene: Scene) -> str:
    """Returns the prompt of a scene, such as "a red circle at the top left bounces on a dark background"."""
    return f"{_subject(scene)} on a {scene.background} background"


def _subject(scene: Scene) -> str:
    if scene.bars:
        return "the view pans over bars"
    things = " and ".join(_name(thing) + (_place(thing) if scene.placed else "") for thing in scene.things)
    if scene.kind == "return":
        return f"{things} leaves and returns"
    return f"{things} {'bounces' if len(scene.things) == 1 else 'bounce'}"


def _name(thing: Thing) -> str:
    return f"a {thing.colour} {thing.shape}" if thing.named else "a shape"


def _place(thing: Thing) -> str:
    """Returns the phrase for an object's position in the first frame."""
    row = ROWS[_part(float(thing.y.at(np.array(0))), HEIGHT, len(ROWS))]
    return f" at the {row} {COLUMNS[_part(float(thing.x.at(np.array(0))), WIDTH, len(COLUMNS))]}"


def _part(position: float, size: int, parts: int) -> int:
    return min(max(int(position * parts / size), 0), parts - 1)
