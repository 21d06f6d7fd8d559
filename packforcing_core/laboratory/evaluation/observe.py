"""Reads a video frame by frame, in constant memory, and records a few numbers per frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from .scientific import opencv

LONGEST_SIDE = 256  # pixels of the shorter side; larger videos are downscaled to it
FLOW_SHARE = 0.05  # a frame's motion is the mean over this fraction of the pixels, those that move most
RETURNS, RETURNS_SHARE = 0.5, 0.1  # tolerance of the forward-backward check: pixels, plus a fraction of the flow
SAMPLED_FPS = 8.0  # the rate at which VBench's dynamic degree compares frames
BINS, SPREAD = 12, 3.0  # the histogram's bins per axis, and its half width in standard deviations


@dataclass(frozen=True)
class Observations:
    """Numbers for each frame [T]. At the first frame, those that compare with an earlier frame are 0 (similarities: 1).

    `lab` [T, 3]: mean colour in CIE Lab. `contrast`: standard deviation of L. `change`: mean absolute difference from
    the previous frame, in levels of 0 to 255, without the change that all pixels share. `flow`: mean motion since the
    previous frame of the FLOW_SHARE of the pixels that move most. `sampled_flow`: the same since the frame 1 /
    SAMPLED_FPS seconds before (0 where none is compared). Both are fractions of the frame's shorter side. `like_first`,
    `like_previous`: similarity of the colour histograms, 0..1. `side`: the shorter side in pixels.
    """

    fps: float
    side: int
    lab: np.ndarray
    contrast: np.ndarray
    change: np.ndarray
    flow: np.ndarray
    sampled_flow: np.ndarray
    like_first: np.ndarray
    like_previous: np.ndarray

    @property
    def interval(self) -> int:
        """Number of frames between two comparisons of `sampled_flow`."""
        return sampling_interval(self.fps)


def sampling_interval(fps: float) -> int:
    return max(1, round(fps / SAMPLED_FPS))


def observe(frames: Iterable[np.ndarray], fps: float, flow: bool = True) -> Observations:
    """Observes any number of RGB frames, uint8 [H, W, 3]. `flow` False saves half of the time and sets both flows to 0;
    the measures that depend on them (motion, freezes, jumps) are then invalid.
    """
    watcher = _Watcher(fps, flow)
    rows = [watcher.look(frame) for frame in frames]
    names = [field.name for field in fields(Observations)][2:]
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    return Observations(fps, watcher.side, **columns)


class _Watcher:
    def __init__(self, fps: float, flow: bool):
        self.side = 0
        self._flows = flow
        self._cv2 = opencv()
        self._interval = sampling_interval(fps)
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._recent: deque[np.ndarray] = deque(maxlen=self._interval)  # grey images, newest last
        self._small: np.ndarray | None = None
        self._first: np.ndarray | None = None
        self._previous: np.ndarray | None = None
        self._number = 0

    def look(self, frame: np.ndarray) -> dict[str, object]:
        cv2 = self._cv2
        self.side = min(frame.shape[:2])
        scale = min(1.0, LONGEST_SIDE / self.side)
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        spread = _spread(lab, cv2)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        row = {
            "lab": lab.reshape(-1, 3).mean(0),
            "contrast": lab[..., 0].std(),
            "change": 0.0 if self._small is None else _change(self._small, small),
            "flow": self._motion(self._recent[-1], grey) if self._recent else 0.0,
            "sampled_flow": self._sampled(grey),
            "like_first": 1.0 if self._first is None else _likeness(self._first, spread),
            "like_previous": 1.0 if self._previous is None else _likeness(self._previous, spread),
        }
        self._first = spread if self._first is None else self._first
        self._previous, self._small = spread, small
        self._recent.append(grey)
        self._number += 1
        return row

    def _sampled(self, grey: np.ndarray) -> float:
        due = self._number and self._number % self._interval == 0
        return self._motion(self._recent[0], grey) if due else 0.0

    def _motion(self, before: np.ndarray, after: np.ndarray) -> float:
        if not self._flows or np.array_equal(before, after):
            return 0.0
        forward = self._flow.calc(before, after, None).copy()
        lengths = np.where(self._returns(forward, self._flow.calc(after, before, None)), np.hypot(*forward.T).T, 0.0)
        count = max(1, int(FLOW_SHARE * lengths.size))
        return float(np.partition(lengths, -count, axis=None)[-count:].mean()) / min(before.shape)

    def _returns(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Returns where forward and backward flow are consistent [H, W]. In flat regions the estimated flow is
        arbitrary, and the two disagree.
        """
        rows, columns = np.indices(forward.shape[:2], np.float32)
        there = columns + forward[..., 0], rows + forward[..., 1]
        back = self._cv2.remap(backward, *there, self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE)
        off = np.hypot(*(forward + back).T).T
        return off < RETURNS + RETURNS_SHARE * np.hypot(*forward.T).T


def _change(before: np.ndarray, after: np.ndarray) -> float:
    difference = after.astype(np.float32) - before
    return float(np.abs(difference - difference.mean((0, 1))).mean())


def _spread(lab: np.ndarray, cv2) -> np.ndarray:
    """Returns the histogram of a frame's colours, normalised by their mean and spread, so that a tint or contrast
    change of the whole frame, or motion, does not change it.
    """
    flat = lab.reshape(-1, 3)
    relative = (flat - flat.mean(0)) / max(1.0, float(np.sqrt(flat.var(0).sum())))
    counts, _ = np.histogramdd(relative, bins=BINS, range=[(-SPREAD, SPREAD)] * 3)
    # Smoothing: noise moves colours at a bin's border from one bin to the other.
    for axis in range(3):
        counts = counts + 0.5 * (np.roll(counts, 1, axis) + np.roll(counts, -1, axis))
    return counts.ravel() / counts.sum()


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the Bhattacharyya coefficient of two histograms: 1 if they are equal, 0 if they do not overlap."""
    return float(np.sqrt(one * other).sum())
