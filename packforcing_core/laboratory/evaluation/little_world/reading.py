"""Recognises the content of a toy world frame: the background, and each object's colour, shape, position and size.

A pixel at a shape's edge is a mixture of the shape's colour and the background, and such mixtures look like other
colours. So a pixel is not compared with the palette, but with the *lines* in RGB from the background to each palette
colour. The position along the nearest line is the fraction of the pixel that the shape covers; a large distance from
every line means another colour. A region has a colour only if it has a core that is thicker or purer than any edge;
this separates two shapes that touch. A shape is identified by comparing its coverage with templates of the same area,
sharp and soft. Shapes of this world do not rotate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ....miniature.world import BACKGROUNDS, COLOURS, HEIGHT, SHAPES, WIDTH
from ..scientific import ndimage
from .draw import coverage

# Distances in RGB. The least contrast of a shape in this world is 104 (green on teal).
BACKGROUND_REACH = 60.0  # farther from all backgrounds than this: no known background
SAME_AS_BACKGROUND = 40.0
OFF_LINE = 70.0  # farther from all lines than this: no known colour
FAINTEST, BRIGHTEST = 0.45, 1.25  # positions along a line accepted as its colour, for regions without a core
FAINTEST_CORE, OFF_LINE_CORE = 0.72, 45.0  # and for the core of an object: closer to the background it is a blend
LEAST_AREA = 24.0  # pixels; smaller regions are noise, or too small to recognise
LEAST_CORE = 4  # pixels deeper than CORE_DEPTH inside a region
CORE_DEPTH = 2
PURE_ALONG, PURE_OFF = 0.75, 50.0  # a pixel this far along a line and this close to it is no mixture of two objects
SOFTNESS = (0.5, 1.5, 2.5)  # half widths of the templates' edges, in pixels: drawn, slightly blurred, decoded
LEAST_FIT, LEAST_FIT_PARTLY = 0.93, 0.95  # objects that may be partly hidden need the better fit
RIM = 3  # pixels around a region in which its faint edge is searched

_HUES = np.array(list(COLOURS.values()), np.float32)
_GROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)
_PALETTE = np.concatenate([_GROUNDS, _HUES])


@dataclass(frozen=True)
class Seen:
    """An object found in a frame. `x` and `y` (pixels) and `area` (square pixels) are those of its visible part.

    `colour` is None if no colour of the palette is near. `shape` (a name, or "bar") is None if too little is visible or
    no template fits. `fit` is 1 for a perfect match with the template. `cut` is True if the object touches the frame's
    edge (for a bar: the left or right one), `touching` if it touches another object, which may hide part of it.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    area: float
    fit: float
    cut: bool = False
    touching: bool = False

    def __str__(self) -> str:
        return f"{self.colour or 'odd-coloured'} {self.shape or 'thing'} at {self.x:.0f}, {self.y:.0f}"


@dataclass(frozen=True)
class Reading:
    """The content of a frame. `background` is None if the most frequent colour of the frame is not one
    of BACKGROUNDS.
    """

    background: str | None
    things: tuple[Seen, ...]


def read_frame(frame: np.ndarray) -> Reading:
    """Returns the content of a frame, uint8 [HEIGHT, WIDTH, 3]."""
    pixels = frame.astype(np.float32)
    name, ground = _background(pixels)
    offsets = pixels - ground
    away = np.einsum("hwc,hwc->hw", offsets, offsets)
    mask = away > SAME_AS_BACKGROUND**2
    regions = _regions(mask, offsets, ground)
    things = [thing for number in range(len(regions)) if (thing := _measure(regions, number, offsets, ground))]
    return Reading(name, tuple(sorted(things, key=lambda thing: thing.x)))


def _background(pixels: np.ndarray) -> tuple[str | None, np.ndarray]:
    """Returns the most frequent colour of the palette if it is a background, and its actual value [3] in the frame: the
    mean of the pixels near it.
    """
    flat = pixels[::2, ::2].reshape(-1, 3)  # a quarter of the pixels is enough
    nearest = ((_PALETTE**2).sum(1) - 2 * flat @ _PALETTE.T).argmin(1)
    ground = flat[nearest == np.bincount(nearest, minlength=len(_PALETTE)).argmax()].mean(0)
    near = ((flat - ground) ** 2).sum(1) < SAME_AS_BACKGROUND**2
    ground = flat[near].mean(0) if near.any() else ground
    distances = np.sqrt(((_GROUNDS - ground) ** 2).sum(1))
    best = int(distances.argmin())
    return (list(BACKGROUNDS)[best] if distances[best] < BACKGROUND_REACH else None), ground


def _nearest_line(offsets: np.ndarray, ground: np.ndarray, lowest: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for offsets from the background [N, 3], the squared distances to the line of each colour [N, colours]
    and the positions along it.
    """
    lines = _HUES - ground
    lengths = (lines**2).sum(1)
    along = np.clip(offsets @ lines.T / lengths, lowest, BRIGHTEST)
    products = offsets @ lines.T
    distances = (offsets**2).sum(1, keepdims=True) - 2 * along * products + along**2 * lengths
    return distances, along


def _regions(mask: np.ndarray, offsets: np.ndarray, ground: np.ndarray) -> list[np.ndarray]:
    """Returns one mask [HEIGHT, WIDTH] per object: the connected regions, split where two colours have cores."""
    parts, count = ndimage().label(mask)
    if count == 0:
        return []
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    labels, pure = np.full(mask.shape, -1), np.zeros(mask.shape, bool)
    scores = np.full((*mask.shape, len(_HUES)), np.inf, np.float32)
    distances, along = _nearest_line(offsets[mask], ground)
    scores[mask], labels[mask] = distances, distances.argmin(1)
    pure[mask] = ((distances < PURE_OFF**2) & (along > PURE_ALONG))[np.arange(len(distances)), distances.argmin(1)]
    regions: list[np.ndarray] = []
    for part in range(1, count + 1):
        if areas[part] >= LEAST_AREA:
            regions += _split(parts == part, labels, pure, scores)
    return regions


def _split(part: np.ndarray, labels: np.ndarray, pure: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    counts = np.bincount(labels[part], minlength=len(_HUES))
    candidates = [hue for hue in range(len(_HUES)) if counts[hue] >= LEAST_AREA]
    if len(candidates) < 2:
        return [part]
    colours = [part & (labels == hue) for hue in candidates]
    cored = [_has(_core(own)) or _has(_core(own & pure, 1)) for own in colours]
    if sum(cored) < 2:
        return [part]
    cores = [hue for hue, has in zip(candidates, cored, strict=True) if has]
    owner = scores[..., cores].argmin(-1)
    split = []
    for index in range(len(cores)):
        own = part & (owner == index)
        # Pieces of one colour on both sides of an occluder are one object; tiny pieces are edges.
        pieces, count = ndimage().label(own)
        areas = np.bincount(pieces.ravel(), minlength=count + 1)
        areas[0] = 0
        split.append((areas >= LEAST_AREA / 2)[pieces])
    return [own for own in split if own.sum() >= LEAST_AREA]


def _core(mask: np.ndarray, depth: int = CORE_DEPTH) -> np.ndarray:
    return ndimage().binary_erosion(mask, iterations=depth, border_value=1)


def _has(core: np.ndarray) -> bool:
    return bool(np.count_nonzero(core) >= LEAST_CORE)


def _measure(regions: list[np.ndarray], number: int, offsets: np.ndarray, ground: np.ndarray) -> Seen | None:
    mask = regions[number]
    box = _around(mask)
    own = mask[box]
    others = np.zeros_like(own)
    for other in range(len(regions)):
        if other != number:
            others |= regions[other][box]
    touching = bool((ndimage().binary_dilation(own, iterations=2) & others).any()) if others.any() else False
    core = _core(own)
    cored = _has(core)
    colour, hue = _colour(offsets[box][core if cored else own], ground, cored)
    alpha = _alpha(offsets[box], hue) * ~others
    area = float(alpha.sum())
    if area < LEAST_AREA:
        return None
    rows, columns = np.arange(HEIGHT)[box[0]] + 0.5, np.arange(WIDTH)[box[1]] + 0.5
    x, y = float(alpha.sum(0) @ columns / area), float(alpha.sum(1) @ rows / area)
    top, bottom, left, right = own[0].any(), own[-1].any(), own[:, 0].any(), own[:, -1].any()
    at_sides = bool((left and columns[0] < 1) or (right and columns[-1] > WIDTH - 1))
    at_ends = bool(top and rows[0] < 1), bool(bottom and rows[-1] > HEIGHT - 1)
    if all(at_ends):
        profile = alpha.mean(0)
        fit = 1 - float(np.abs(alpha - profile).sum()) / (2 * area)
        return Seen(colour, "bar" if fit >= LEAST_FIT else None, x, y, area, fit, at_sides, touching)
    shape, fit = _shape(alpha, columns - x, rows - y, area)
    cut = at_sides or any(at_ends)
    named = fit >= (LEAST_FIT_PARTLY if cut or touching else LEAST_FIT)
    return Seen(colour, shape if named else None, x, y, area, fit, cut, touching)


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, rows[0] - RIM), rows[-1] + 1 + RIM),
        slice(max(0, columns[0] - RIM), columns[-1] + 1 + RIM),
    )


def _colour(pixels: np.ndarray, ground: np.ndarray, cored: bool) -> tuple[str | None, np.ndarray]:
    """Returns the name of a colour, or None, and the mean offset from the background [3], of an object's core pixels,
    or of all its pixels if it has no core.
    """
    hue = pixels.mean(0)
    distances, along = _nearest_line(hue[None], ground, 0.0 if cored else FAINTEST)
    best, reach = int(distances[0].argmin()), OFF_LINE_CORE if cored else OFF_LINE
    faint = cored and along[0, best] < FAINTEST_CORE
    return (list(COLOURS)[best] if distances[0, best] < reach**2 and not faint else None), hue


def _alpha(offsets: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Returns the fraction of each pixel that an object covers, given the offset `hue` of its full colour from the
    background.
    """
    along = np.clip(offsets @ hue / (hue @ hue), 0.0, 1.0)
    rest = offsets - along[..., None] * hue
    along[np.einsum("hwc,hwc->hw", rest, rest) > OFF_LINE**2] = 0.0
    along[along < 0.1] = 0.0
    return along


def _shape(alpha: np.ndarray, dx: np.ndarray, dy: np.ndarray, area: float) -> tuple[str, float]:
    radius = math.sqrt(area / math.pi)
    best = (-1.0, SHAPES[0])
    for shape in SHAPES:
        for softness in SOFTNESS:
            # An edge of half width s is the drawn edge (half width 0.5) at 1 / 2s of the size.
            scale = 0.5 / softness
            template = coverage(shape, dx[None, :] * scale, dy[:, None] * scale, radius * scale)
            fit = 1 - float(np.abs(alpha - template).sum() / (area + template.sum()))
            best = max(best, (fit, shape))
    return best[1], best[0]
