"""Draws scenes. Edges are antialiased over one pixel."""

from __future__ import annotations

import math

import numpy as np

from ....miniature.world import BACKGROUNDS, COLOURS, HEIGHT, WIDTH
from .scene import BAR_SPACING, BAR_WIDTH, Bars, Scene, Thing

# Half the side of a square, and the inner radius of an equilateral triangle, of the area of the unit circle.
SQUARE_HALF = math.sqrt(math.pi) / 2
TRIANGLE_INNER = math.sqrt(math.pi / (3 * math.sqrt(3)))


def draw(scene: Scene, frames: int, first: int = 0) -> np.ndarray:
    """Draws frames `first` to `first` + `frames` - 1 of a scene; returns uint8 [T, HEIGHT, WIDTH, 3]."""
    times = np.arange(first, first + frames)
    video = np.empty((frames, HEIGHT, WIDTH, 3), np.float32)
    video[:] = BACKGROUNDS[scene.background]
    if scene.bars:
        _draw_bars(video, scene.bars, times)
    for thing in reversed(scene.things):
        _draw_thing(video, thing, times)
    return np.rint(video).astype(np.uint8)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Returns the fraction of each pixel, 0..1, that a shape covers. `dx` and `dy` are the pixels' offsets from the
    shape's centroid.
    """
    return np.clip(0.5 - _distance(shape, dx, dy, radius), 0.0, 1.0)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Returns the signed distance to the outline in pixels, negative inside. It is exact inside and near the sides."""
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - SQUARE_HALF * radius
    slanted = math.sqrt(3) / 2 * np.abs(dx) - 0.5 * dy  # the two upper sides; it stands on the third
    return np.maximum(slanted, dy) - TRIANGLE_INNER * radius


def _draw_thing(video: np.ndarray, thing: Thing, times: np.ndarray) -> None:
    colour = np.array(COLOURS[thing.colour], np.float32)
    reach = math.ceil(2 * thing.radius) + 1
    offsets = np.arange(-reach, reach + 1)
    for frame, x, y in zip(video, thing.x.at(times), thing.y.at(times), strict=True):
        columns, rows = offsets + round(x), offsets + round(y)
        columns = columns[(columns >= 0) & (columns < WIDTH)]
        rows = rows[(rows >= 0) & (rows < HEIGHT)]
        if not (len(columns) and len(rows)):
            continue
        dx, dy = (columns + 0.5 - x)[None, :], (rows + 0.5 - y)[:, None]
        alpha = coverage(thing.shape, dx, dy, thing.radius)[..., None].astype(np.float32)
        patch = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        patch += alpha * (colour - patch)


def _draw_bars(video: np.ndarray, bars: Bars, times: np.ndarray) -> None:
    columns = np.arange(WIDTH) + 0.5
    for frame, view in zip(video, bars.view.at(times), strict=True):
        for index, colour in enumerate(bars.colours):
            centre = index * BAR_SPACING - view
            alpha = np.clip(BAR_WIDTH / 2 + 0.5 - np.abs(columns - centre), 0.0, 1.0)[:, None]
            frame += (alpha * (np.array(COLOURS[colour]) - frame)).astype(np.float32)
