"""Checks that an object moves in a straight line at constant speed and keeps its size, without sudden changes.

Only complete sightings count. Each frame is compared with a window of frames around it, so an error is located in time,
and a video that is wrong throughout is wrong in every frame. The limits lie between the values of correct objects
(drawn, and decoded by the VAE) and those of errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ....miniature.world import HEIGHT, WIDTH
from .motion import FARTHEST, FASTEST, JUMP, SPAN
from .report import Reason
from .scene import MARGIN

AROUND = 8  # frames on either side in the window of a frame
LEAST_SPEED = 0.3  # pixels per frame, mean of the window; the slowest objects move 0.7, half of it where they turn
FASTER, SLOWER = 1.7, 0.5  # times the video's own median speed
BEND = 1.6  # pixels from the straight line through positions 2 x BEND_SPAN frames apart
BEND_SPAN = 6
TURN = 7.0  # pixels from a wall within which an object may turn
INNER = 0.4, 0.6  # fractions of the width between which objects that leave and return turn
GROWTH = 0.18  # fraction of the window's median area
SPREAD = 0.3  # between the 10% and 90% quantiles of the window's areas, as a fraction of their median
DRIFT = 0.35  # fraction of the median area of the first FIRST sightings
FIRST = 16
FEW = 5  # windows with fewer complete sightings are not judged


class Whole(NamedTuple):
    """A complete sighting of an object: its centre in pixels and its area in square pixels."""

    x: float
    y: float
    area: float


def course_faults(wholes: Mapping[int, Whole], kind: str) -> Iterator[tuple[int, Reason]]:
    """Yields the errors in an object's motion and size, by frame. `wholes` are its complete sightings in order, `kind`
    is the scene's kind.
    """
    if not wholes:
        return
    frames = sorted(wholes)
    table = np.array([wholes[frame] for frame in frames])
    speeds = _speeds(wholes)
    usual = float(np.median(list(speeds.values()))) if speeds else 0.0
    first = float(np.median(table[:FIRST, 2]))
    numbers = np.array(frames)
    for (before, own), (frame, new) in pairwise(sorted(wholes.items())):
        limit = min(FARTHEST, JUMP + FASTEST * (frame - before - 1))
        if (gone := math.hypot(new.x - own.x, new.y - own.y)) > limit:
            yield frame, Reason("course", f"{gone:.0f} px away from where it was {frame - before} frames before")
    for frame in frames:
        near = np.abs(numbers - frame) <= AROUND
        yield from ((frame, reason) for reason in _size_faults(wholes[frame].area, table[near, 2], first))
        yield from ((frame, reason) for reason in _speed_faults(speeds, frame, usual))
        yield from ((frame, reason) for reason in _bends(wholes, frame, kind, first))


def _speeds(wholes: Mapping[int, Whole]) -> dict[int, float]:
    """Returns the speed in pixels per frame, averaged over SPAN frames, of each frame with sightings at both ends."""
    pairs = ((frame, wholes[frame], wholes.get(frame - SPAN)) for frame in wholes)
    return {frame: math.hypot(new.x - old.x, new.y - old.y) / SPAN for frame, new, old in pairs if old}


def _size_faults(area: float, around: np.ndarray, first: float) -> Iterator[Reason]:
    if len(around) < FEW:
        return
    median = float(np.median(around))
    low, high = np.quantile(around, [0.1, 0.9])
    if abs(area - median) > GROWTH * median or high - low > SPREAD * median:
        yield Reason("size", f"{area:.0f} square pixels; between {low:.0f} and {high:.0f} in the frames around it")
    elif abs(area - first) > DRIFT * first:
        yield Reason("size", f"{area:.0f} square pixels, {first:.0f} at first")


def _speed_faults(speeds: Mapping[int, float], frame: int, usual: float) -> Iterator[Reason]:
    around = [speeds[other] for other in range(frame - AROUND, frame + AROUND + 1) if other in speeds]
    if len(around) < FEW:
        return
    if (mean := float(np.mean(around))) < LEAST_SPEED:
        yield Reason("motion", f"{mean:.2f} px per frame; objects of the toy world never stand still")
    elif not SLOWER * usual <= float(np.median(around)) <= FASTER * usual:
        yield Reason("speed", f"{np.median(around):.2f} px per frame, {usual:.2f} in the video")


def _bends(wholes: Mapping[int, Whole], frame: int, kind: str, area: float) -> Iterator[Reason]:
    """Reports turns that are not at a wall. It measures the distance in pixels from the straight line through the
    positions BEND_SPAN frames before and after.
    """
    own, old, new = wholes[frame], wholes.get(frame - BEND_SPAN), wholes.get(frame + BEND_SPAN)
    if old is None or new is None:
        return
    margin = MARGIN * math.sqrt(area / math.pi)
    for axis, size in ((0, WIDTH), (1, HEIGHT)):
        off = abs(old[axis] + new[axis] - 2 * own[axis]) / 2
        places = old[axis], own[axis], new[axis]
        walls = [margin, size - margin]
        near = any(abs(place - wall) < TURN for place in places for wall in walls) or not (
            margin < own[axis] < size - margin
        )
        inner = kind == "return" and axis == 0 and any(INNER[0] - 0.06 < p / WIDTH < INNER[1] + 0.06 for p in places)
        if off > BEND and not near and not inner:
            yield Reason("course", f"{off:.1f} px off a straight line, without a wall to bounce off")
