"""Measurements of one study video: per interval, and over time."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
from PIL import Image

from ..evaluation.little_world.checker import check_readings, read_video
from ..evaluation.little_world.report import Motion, WorldReport
from ..evaluation.measures import measure
from ..evaluation.observe import Observations, observe

MOMENTS = (5.0, 15.0, 30.0, 60.0, 120.0)
"""Ends, in seconds, of the intervals in which a video is measured."""
CURVES = ("right", "colours_right", "count_right", "identity_kept")
PICTURES = 6


def moments_of(seconds: float) -> tuple[float, ...]:
    """The ends of the intervals of a video of `seconds`."""
    return (*(moment for moment in MOMENTS if moment < seconds), seconds)


def read_film(frames: np.ndarray, prompt: str, fps: float, moments: Sequence[float]) -> dict:
    """Numbers of frames uint8 [T, 64, 128, 3]: `windows` (one for each moment), `curves` (one value a second).

    `pictures` are PICTURES frames side by side, spread evenly from the first to the last, as base64 of a PNG.
    """
    # The checker measures motion, freezes and jumps exactly, without optical flow.
    readings, seen = read_video(frames), observe(frames, fps, flow=False)
    report = check_readings(readings, prompt)
    stops = [min(len(frames), round(moment * fps)) for moment in moments]
    windows = [
        _window(
            report.between(first, stop),
            check_readings(readings[first:stop], prompt).motion,
            _part(seen, 0, stop),
            _part(seen, first, stop),
        )
        for first, stop in pairwise([0, *stops])
    ]
    return {"frames": len(frames), "windows": windows, "curves": _curves(report, fps), "pictures": _pictures(frames)}


def _window(report: WorldReport, motion: Motion, until: Observations, within: Observations) -> dict[str, float]:
    """`until` is the video up to the window's end, for drifts; `within` the window alone, as is its `motion`: the
    report's speed and freezing are the whole video's."""
    drift, shot = measure(until), measure(within)
    return {
        **report.rates(),
        "moving": 0.0 if motion.speed is None else 1 - motion.frozen,
        "speed": motion.speed or 0.0,
        "jumps_per_minute": 60 * len(report.motion.jumps) / shot.seconds,
        "colour_drift": drift.colour_drift,
        "worst_colour_drift": drift.worst_colour_drift,
        "contrast_drift": drift.contrast_drift,
        "flicker": shot.flicker,
        "consistency": drift.consistency,
    }


def _part(seen: Observations, first: int, stop: int) -> Observations:
    arrays = {name: getattr(seen, name) for name in (field.name for field in fields(seen)[2:])}
    return replace(seen, **{name: values[first:stop] for name, values in arrays.items()})


def _curves(report: WorldReport, fps: float) -> dict[str, list[float]]:
    second = round(fps)
    parts = [report.between(first, first + second) for first in range(0, len(report.verdicts), second)]
    return {name: [round(getattr(part, name), 4) for part in parts] for name in CURVES}


def _pictures(frames: np.ndarray) -> str:
    chosen = frames[np.linspace(0, len(frames) - 1, PICTURES).round().astype(int)]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(chosen, axis=1)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def unpacked_pictures(text: str) -> Image.Image:
    """The strip of `read_film`'s `pictures`."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
