"""Measures of a video that need no model: drift, flicker, motion, freezes, jumps, consistency.

Each measure ignores what the others measure: a slow drift is no flicker, a jump no drift, and movement neither.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from .observe import Observations

WINDOW_SECONDS = 1.0  # the beginning and the end whose means are compared
FROZEN, FROZEN_LEVELS = 0.001, 0.5  # nothing goes so far (a share of the shorter side), nor changes so many levels
DYNAMIC = 6 / 256  # share of the shorter side; the threshold of VBench's dynamic degree
JUMP_RATIO, JUMP_LEVELS = 4.0, 0.5  # a jump changes so many times more than its surroundings, and so many levels
STILL_LEVELS = 0.05  # a change smaller than this is none
FLAT = 0.5  # levels of lightness (of 100) below which an image has no contrast
AROUND = 12  # frames on either side that a jump is compared with


@dataclass(frozen=True)
class Measures:
    """Numbers of a whole video.

    `colour_drift`: distance (CIE76) of the mean colour of the last second from that of the first; 2.3 is just seen.
    `worst_colour_drift`: the same of the second that is farthest. `contrast_drift`: by how much of itself the standard
    deviation of lightness has grown (below 0: shrunk). `flicker`: how far a frame's mean colour lies from the middle of
    its neighbours', the mean of the video. `motion`: how far the fastest 5 % of the pixels go, the median of the video,
    in pixels a frame. `dynamic_degree`: the share of pairs of frames, 1/8 s apart, in which they go farther than 6
    pixels of 256 (VBench's threshold for a moving video, with DIS in RAFT's place). `frozen`: the share of frames in
    which nothing moves or changes. `jumps`: frames that are not the continuation of the one before. `consistency`:
    likeness of the colours' spread, frame to first and frame to previous frame, the mean of both (VBench's subject
    consistency does so with DINO), 0..1.

    Optical flow sees little of what moves along edges that look the same all the way: the `motion` of the little
    world's pans, over bars as high as the frame, is not to be trusted. There the checker's speed tells.
    """

    frames: int
    seconds: float
    colour_drift: float
    worst_colour_drift: float
    contrast_drift: float
    flicker: float
    motion: float
    dynamic_degree: float
    frozen: float
    jumps: tuple[int, ...]
    consistency: float

    def as_dict(self) -> dict:
        return {**asdict(self), "jumps": list(self.jumps)}


def measure(seen: Observations) -> Measures:
    """The measures of what was seen of a video of one frame or more."""
    frames = len(seen.lab)
    window = max(1, min(round(WINDOW_SECONDS * seen.fps), frames // 2))
    seconds = np.array([seen.lab[at : at + window].mean(0) for at in range(0, frames - window + 1, window)])
    colour_drift = float(np.linalg.norm(seen.lab[-window:].mean(0) - seconds[0]))
    contrasts = float(seen.contrast[:window].mean()), float(seen.contrast[-window:].mean())
    still = (seen.flow < FROZEN) & (seen.change < FROZEN_LEVELS)
    sampled = seen.sampled_flow[seen.interval :: seen.interval]
    return Measures(
        frames=frames,
        seconds=frames / seen.fps,
        colour_drift=colour_drift,
        worst_colour_drift=max(colour_drift, float(np.linalg.norm(seconds - seconds[0], axis=1).max())),
        contrast_drift=_growth(*contrasts),
        flicker=_flicker(seen.lab),
        motion=float(np.median(seen.flow[1:])) * seen.side if frames > 1 else 0.0,
        dynamic_degree=float((sampled > DYNAMIC).mean()) if len(sampled) else 0.0,
        frozen=float(still[1:].mean()) if frames > 1 else 0.0,
        jumps=_jumps(seen.change),
        consistency=float((seen.like_first[1:].mean() + seen.like_previous[1:].mean()) / 2) if frames > 1 else 1.0,
    )


def _growth(first: float, last: float) -> float:
    """Relative growth of a contrast; what is flat has none to lose, and begins at FLAT."""
    return (max(last, FLAT) - max(first, FLAT)) / max(first, FLAT)


def _flicker(lab: np.ndarray) -> float:
    if len(lab) < 3:
        return 0.0
    off = lab[1:-1] - (lab[:-2] + lab[2:]) / 2
    return float(np.linalg.norm(off, axis=1).mean())


def _jumps(change: np.ndarray) -> tuple[int, ...]:
    """Frames that change far more than those around them that change at all: a still video may begin to move."""
    found = []
    for frame in range(1, len(change)):
        around = np.r_[change[max(1, frame - AROUND) : frame], change[frame + 1 : frame + 1 + AROUND]]
        moving = around[around > STILL_LEVELS]
        usual = float(np.median(moving)) if len(moving) else 0.0
        if change[frame] > max(JUMP_LEVELS, JUMP_RATIO * usual):
            found.append(frame)
    return tuple(found)
