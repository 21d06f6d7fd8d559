"""Measures the motion of objects: speed, freezes and jumps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .report import Motion

SPAN = 4  # frames over which a speed is measured, so that jitter is not movement
# Frozen: within that many pixels for that many frames. The slowest objects move 5.6 pixels in them.
FREEZE_FRAMES, FREEZE_PIXELS = 8, 1.0
JUMP = 4.0  # pixels in one frame; the fastest objects move 2
FASTEST = 2.0  # pixels per frame, while out of sight
FARTHEST = 64.0  # pixels; farther than this is a jump after any absence

Track = Sequence[tuple[int, float, float]]
"""Positions of an object as (frame, x, y), in order; frames without a sighting are left out."""


def motion_of(tracks: Sequence[Track]) -> Motion:
    """Returns the motion of all tracks together."""
    speeds: list[float] = []
    still: dict[int, bool] = {}
    jumps: set[int] = set()
    for track in tracks:
        places = {frame: np.array((x, y)) for frame, x, y in track}
        speeds += [
            float(np.linalg.norm(places[frame] - places[frame - SPAN])) / SPAN
            for frame in places
            if frame - SPAN in places
        ]
        for frame, frozen in _still(places).items():
            still[frame] = still.get(frame, True) and frozen
        jumps |= _jumps(track)
    speed = float(np.median(speeds)) if speeds else None
    return Motion(speed, float(np.mean(list(still.values()))) if still else 0.0, tuple(sorted(jumps)))


def _still(places: dict[int, np.ndarray]) -> dict[int, bool]:
    """Returns, for each frame that ends FREEZE_FRAMES sightings in a row, whether all of them lie within
    FREEZE_PIXELS.
    """
    found = {}
    for frame in places:
        recent = [places.get(frame - back) for back in range(FREEZE_FRAMES)]
        if all(place is not None for place in recent):
            found[frame] = bool(np.ptp(np.array(recent), axis=0).max() < FREEZE_PIXELS)
    return found


def _jumps(track: Track) -> set[int]:
    found = set()
    for (before, x, y), (frame, new_x, new_y) in pairwise(track):
        limit = min(FARTHEST, JUMP + FASTEST * (frame - before - 1))
        if np.hypot(new_x - x, new_y - y) > limit:
            found.add(frame)
    return found
