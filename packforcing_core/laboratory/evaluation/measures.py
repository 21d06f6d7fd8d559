"""Measures of a video that need no pretrained model: drift, flicker, motion, freezes, jumps, consistency.

Each measure is insensitive to what the others measure: a slow drift is no flicker, a jump is no drift, and motion is
neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from .observe import Observations

WINDOW_SECONDS = 1.0  # length of the windows at the beginning and the end whose means are compared
FROZEN, FROZEN_LEVELS = 0.001, 0.5  # limits: motion as a fraction of the shorter side, change in levels
DYNAMIC = 6 / 256  # fraction of the shorter side; VBench's threshold of the dynamic degree
JUMP_RATIO, JUMP_LEVELS = 4.0, 0.5  # a jump changes this many times more than its surroundings, and this many levels
STILL_LEVELS = 0.05  # smaller changes count as none
FLAT = 0.5  # levels of lightness (of 100) below which an image has no contrast
DRIFT_AT = (60, 120, 240)  # seconds at which work on long videos reports drift
AROUND = 12  # frames on either side with which a jump is compared


@dataclass(frozen=True)
class Measures:
    """Measures of a whole video.

    `colour_drift`: distance (CIE76) between the mean colours of the first and the last second; 2.3 is just noticeable.
    `worst_colour_drift`: the largest such distance of any second from the first. `colour_drift_at`: by second (60, 120,
    240, as far as the video lasts), the distance of the second that ends there from the first. `contrast_drift`:
    relative growth of the standard deviation of lightness (below 0: shrinking). `flicker`: distance of a frame's mean
    colour from the midpoint of its neighbours' mean colours, averaged over the video. `motion`: motion of the fastest
    5% of the pixels in pixels per frame, median over the video. `dynamic_degree`: fraction of frame pairs, 1/8 s apart,
    in which these pixels move farther than 6 pixels of 256 (VBench's threshold for a moving video, with DIS optical
    flow instead of RAFT). `frozen`: fraction of frames in which nothing moves or changes. `jumps`: frames that do not
    continue the previous one. `consistency`: mean similarity of the colour histogram to that of the first and of the
    previous frame, 0..1 (VBench's subject consistency does the same with DINO features).

    Optical flow misses motion along edges that look the same over their whole length. So `motion` is unreliable for the
    toy world's pans over full-height bars; use the checker's speed there.
    """

    frames: int
    seconds: float
    colour_drift: float
    worst_colour_drift: float
    colour_drift_at: Mapping[int, float]
    contrast_drift: float
    flicker: float
    motion: float
    dynamic_degree: float
    frozen: float
    jumps: tuple[int, ...]
    consistency: float

    def as_dict(self) -> dict:
        drift = {str(at): drift for at, drift in self.colour_drift_at.items()}
        return {**asdict(self), "colour_drift_at": drift, "jumps": list(self.jumps)}


def drift_moments(seconds: float) -> tuple[int, ...]:
    """The moments of DRIFT_AT that a video of `seconds` reaches. A render of N seconds may be a frame shorter."""
    return tuple(at for at in DRIFT_AT if seconds > at - 0.5)


def measure(seen: Observations) -> Measures:
    """Computes the measures from the observations of a video with at least one frame."""
    frames = len(seen.lab)
    window = max(1, min(round(WINDOW_SECONDS * seen.fps), frames // 2))
    seconds = np.array([seen.lab[at : at + window].mean(0) for at in range(0, frames - window + 1, window)])
    colour_drift = _drift(seen.lab, window, frames)
    contrasts = float(seen.contrast[:window].mean()), float(seen.contrast[-window:].mean())
    still = (seen.flow < FROZEN) & (seen.change < FROZEN_LEVELS)
    sampled = seen.sampled_flow[seen.interval :: seen.interval]
    return Measures(
        frames=frames,
        seconds=frames / seen.fps,
        colour_drift=colour_drift,
        worst_colour_drift=max(colour_drift, float(np.linalg.norm(seconds - seconds[0], axis=1).max())),
        colour_drift_at={
            at: _drift(seen.lab, window, min(frames, round(at * seen.fps))) for at in drift_moments(frames / seen.fps)
        },
        contrast_drift=_growth(*contrasts),
        flicker=_flicker(seen.lab),
        motion=float(np.median(seen.flow[1:])) * seen.side if frames > 1 else 0.0,
        dynamic_degree=float((sampled > DYNAMIC).mean()) if len(sampled) else 0.0,
        frozen=float(still[1:].mean()) if frames > 1 else 0.0,
        jumps=_jumps(seen.change),
        consistency=float((seen.like_first[1:].mean() + seen.like_previous[1:].mean()) / 2) if frames > 1 else 1.0,
    )


def _drift(lab: np.ndarray, window: int, end: int) -> float:
    """Returns the distance of the mean colour of the `window` frames before frame `end` from that of the first ones."""
    return float(np.linalg.norm(lab[end - window : end].mean(0) - lab[:window].mean(0)))


def _growth(first: float, last: float) -> float:
    """Returns the relative growth of the contrast. Contrasts below FLAT count as FLAT, so that a flat video shows no
    drift.
    """
    return (max(last, FLAT) - max(first, FLAT)) / max(first, FLAT)


def _flicker(lab: np.ndarray) -> float:
    if len(lab) < 3:
        return 0.0
    off = lab[1:-1] - (lab[:-2] + lab[2:]) / 2
    return float(np.linalg.norm(off, axis=1).mean())


def _jumps(change: np.ndarray) -> tuple[int, ...]:
    """Returns the frames that change far more than the surrounding frames that change at all. Still frames are ignored,
    so that the first motion of a still video is no jump.
    """
    found = []
    for frame in range(1, len(change)):
        around = np.r_[change[max(1, frame - AROUND) : frame], change[frame + 1 : frame + 1 + AROUND]]
        moving = around[around > STILL_LEVELS]
        usual = float(np.median(moving)) if len(moving) else 0.0
        if change[frame] > max(JUMP_LEVELS, JUMP_RATIO * usual):
            found.append(frame)
    return tuple(found)
