"""The ground truth of a scene's frame: the visible objects, the visible fraction of each, and its position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ....miniature.world import HEIGHT, WIDTH
from .draw import coverage
from .scene import BAR_SPACING, BAR_WIDTH, Bars, Scene, Thing

ROWS, COLUMNS = np.arange(HEIGHT)[:, None] + 0.5, np.arange(WIDTH)[None, :] + 0.5


@dataclass(frozen=True)
class Visible:
    """An object as a frame shows it. `x`, `y` (pixels) and `area` (square pixels) are those of its visible part;
    `share` is the visible fraction of its whole area. Out of sight, `area` is 0 and the centre is that of the whole
    object.
    """

    shape: str
    colour: str
    x: float
    y: float
    area: float
    share: float
    hidden: bool
    """Whether another object, and not only the frame's edge, covers part of it."""


def truth_at(scene: Scene, frame: int) -> tuple[Visible, ...]:
    """Returns the objects of a scene at a frame, in the scene's order, or its bars from left to right."""
    if scene.bars:
        return _bars_at(scene.bars, frame)
    free = np.ones((HEIGHT, WIDTH))
    seen = []
    for thing in scene.things:
        x, y = (float(path.at(np.array([frame]))[0]) for path in (thing.x, thing.y))
        alpha = coverage(thing.shape, COLUMNS - x, ROWS - y, thing.radius)
        seen.append(_visible(thing, alpha, free, (x, y)))
        free = free * (1 - alpha)
    return tuple(seen)


def _visible(thing: Thing, alpha: np.ndarray, free: np.ndarray, centre: tuple[float, float]) -> Visible:
    weights = alpha * free
    area, inside = float(weights.sum()), float(alpha.sum())
    x, y = centre
    if area > 0:
        x, y = float((weights * COLUMNS).sum() / area), float((weights * ROWS).sum() / area)
    share = min(1.0, area / (math.pi * thing.radius**2))
    return Visible(thing.shape, thing.colour, x, y, area, share, hidden=inside - area > 1.0)


def _bars_at(bars: Bars, frame: int) -> tuple[Visible, ...]:
    view = float(bars.view.at(np.array([frame]))[0])
    seen = []
    for index, colour in enumerate(bars.colours):
        centre = index * BAR_SPACING - view
        left, right = max(0.0, centre - BAR_WIDTH / 2), min(float(WIDTH), centre + BAR_WIDTH / 2)
        width = max(0.0, right - left)
        x = (left + right) / 2 if width else centre
        seen.append(Visible("bar", colour, x, HEIGHT / 2, width * HEIGHT, width / BAR_WIDTH, hidden=False))
    return tuple(seen)
