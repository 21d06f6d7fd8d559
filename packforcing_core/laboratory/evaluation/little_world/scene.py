"""The content of a toy world clip, before anything is drawn: which objects it shows, and where.

Everything moves by fixed rules, so a clip is determined by its first frame. A model that has seen the past can predict
the future, so a wrong colour or a lost shape is the model's error. A scene can have any number of frames.

There are three kinds. `bounce`: one or two named shapes move in straight lines and bounce off the edges. `return`: a
shape leaves through a side, is out of sight for seconds and returns; its prompt may leave out its colour, so that only
a model that recalls it can draw it. `pan`: the view moves to and fro over a row of coloured bars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ....miniature.world import BACKGROUNDS, COLOURS, HEIGHT, SHAPES, WIDTH

KINDS: Mapping[str, float] = {"bounce": 0.7, "return": 0.2, "pan": 0.1}
"""The kinds of scenes and their probabilities."""

PLACED = 0.7
"""Probability that a prompt says where objects begin. Where it does not, a model's first block has to choose."""

RADIUS = (10.0, 12.0)  # pixels, of the circle of the same area
SPEED = (0.7, 1.4)  # pixels per frame
AWAY = (12, 28)  # frames out of sight, for shapes that leave
MARGIN = 1.6  # radii between a centre and the frame's edge; keeps a triangle's corners inside
BAR_WIDTH, BAR_SPACING, BARS = 16.0, 40.0, 8


@dataclass(frozen=True)
class Path:
    """A motion to and fro between `low` and `high` at `speed` pixels per frame. `start` is the initial phase: pixels
    along the way there and back.
    """

    low: float
    high: float
    speed: float
    start: float

    def at(self, frames: np.ndarray) -> np.ndarray:
        """Returns the positions in pixels at frame numbers [T]."""
        span = self.high - self.low
        along = (self.start + self.speed * frames) % (2 * span)
        return self.low + np.minimum(along, 2 * span - along)


@dataclass(frozen=True)
class Thing:
    """A shape with the area of a circle of `radius` pixels, whose centre moves along the paths `x` and `y`."""

    shape: str
    colour: str
    radius: float
    x: Path
    y: Path
    named: bool = True
    """Whether the prompt names its colour and shape."""


@dataclass(frozen=True)
class Bars:
    """A row of full-height bars, BAR_SPACING pixels apart. `view` is the path of the view's left edge along the row."""

    colours: tuple[str, ...]
    view: Path


@dataclass(frozen=True)
class Scene:
    """The content of a clip. `things` are ordered from front to back. `placed`: the prompt says where they begin."""

    kind: str
    background: str
    things: tuple[Thing, ...] = ()
    bars: Bars | None = None
    placed: bool = False


def sample_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """Draws a scene with `rng`. `kind` is one of KINDS, or None to draw that as well."""
    scene = _sample(rng, kind)
    return replace(scene, placed=bool(scene.things) and bool(rng.random() < PLACED))


def _sample(rng: np.random.Generator, kind: str | None) -> Scene:
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    background = str(rng.choice(list(BACKGROUNDS)))
    if kind == "pan":
        return Scene(kind, background, bars=_sample_bars(rng))
    if kind == "return":
        return Scene(kind, background, (_sample_leaving(rng),))
    count = 1 if rng.random() < 0.6 else 2
    colours = rng.choice(list(COLOURS), size=count, replace=False)
    return Scene(kind, background, tuple(_sample_bouncing(rng, str(colour)) for colour in colours))


def _sample_bouncing(rng: np.random.Generator, colour: str) -> Thing:
    radius = rng.uniform(*RADIUS)
    speed, angle = rng.uniform(*SPEED), rng.uniform(0.2, 0.9)
    x = _bouncing(rng, MARGIN * radius, WIDTH - MARGIN * radius, speed * np.cos(angle))
    y = _bouncing(rng, MARGIN * radius, HEIGHT - MARGIN * radius, speed * np.sin(angle))
    return Thing(str(rng.choice(SHAPES)), colour, radius, x, y)


def _sample_leaving(rng: np.random.Generator) -> Thing:
    """Draws a shape that turns round out of sight, beyond the left or the right edge of the frame."""
    radius, speed = rng.uniform(*RADIUS), rng.uniform(1.2, 1.6)
    beyond = MARGIN * radius + speed * rng.uniform(*AWAY) / 2
    inner, start = WIDTH * rng.uniform(0.4, 0.6), WIDTH * rng.uniform(0.1, 0.3)
    # It begins in sight, moving towards the edge.
    if rng.random() < 0.5:
        x = Path(-beyond, inner, speed, 2 * inner + beyond - start)
    else:
        x = Path(WIDTH - inner, WIDTH + beyond, speed, inner - start)
    y = Path(MARGIN * radius, HEIGHT - MARGIN * radius, 0.0, rng.uniform(0.0, HEIGHT - 2 * MARGIN * radius))
    return Thing(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), radius, x, y, named=bool(rng.random() < 0.5))


def _sample_bars(rng: np.random.Generator) -> Bars:
    colours = [str(rng.choice(list(COLOURS)))]
    while len(colours) < BARS:
        colours.append(str(rng.choice([colour for colour in COLOURS if colour != colours[-1]])))
    low = rng.uniform(0.0, BAR_SPACING)
    high = low + rng.uniform(0.5, 1.0) * WIDTH
    return Bars(tuple(colours), _bouncing(rng, low, high, rng.uniform(1.0, 2.0)))


def _bouncing(rng: np.random.Generator, low: float, high: float, speed: float) -> Path:
    return Path(low, high, speed, rng.uniform(0.0, 2 * (high - low)))
