"""Prompts of the little world: scenes to words."""

from __future__ import annotations

from .scene import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing

WORDS = (
    *("a", "and", "on", "background", "the", "view", "pans", "over", "bars", "shape"),
    *("bounces", "bounce", "leaves", "returns"),
    *COLOURS,
    *SHAPES,
    *BACKGROUNDS,
)
"""The whole vocabulary. The order is part of the text encoder: new words go to the end."""


def describe(scene: Scene) -> str:
    """The prompt of a scene, such as "a red circle and a blue square bounce on a dark background"."""
    return f"{_subject(scene)} on a {scene.background} background"


def _subject(scene: Scene) -> str:
    if scene.bars:
        return "the view pans over bars"
    things = " and ".join(_name(thing) for thing in scene.things)
    if scene.kind == "return":
        return f"{things} leaves and returns"
    return f"{things} {'bounces' if len(scene.things) == 1 else 'bounce'}"


def _name(thing: Thing) -> str:
    return f"a {thing.colour} {thing.shape}" if thing.named else "a shape"
