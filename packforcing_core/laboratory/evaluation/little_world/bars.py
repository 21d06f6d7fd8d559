"""Checks pans over bars against a prompt: the bars are evenly spaced, and each has the same colour when it returns to
view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ....miniature.world import HEIGHT, WIDTH
from .course import AROUND, FEW, LEAST_SPEED
from .motion import SPAN, Track
from .promise import Promise
from .reading import Reading, Seen
from .report import Reason, Verdict
from .scene import BAR_SPACING, BAR_WIDTH

FIRST_SIGHTINGS = 5
SPACING_TOLERANCE = 4.0  # pixels
WIDTHS = (BAR_WIDTH - 5, BAR_WIDTH + 5)
SMALL = 100.0  # square pixels; smaller regions that match no bar are ignored
EDGE = BAR_SPACING + BAR_WIDTH / 2  # pixels; the centre of a complete bar lies this close to either side


def check_bars(readings: Sequence[Reading], promise: Promise) -> tuple[list[Verdict], list[Track]]:
    """Returns a verdict for each frame, and one track: the view's horizontal offset in pixels."""
    wholes = [[seen for seen in reading.things if seen.shape == "bar" and not seen.cut] for reading in readings]
    views = _views(wholes)
    known = _colours(wholes, views)
    verdicts = []
    for frame, (reading, whole) in enumerate(zip(readings, wholes, strict=True)):
        reasons = []
        if reading.background != promise.background:
            reasons.append(Reason("background", f"background {reading.background}, not {promise.background}"))
        reasons += _spacing(whole)
        reasons += [
            Reason("extra", f"also a {seen}")
            for seen in reading.things
            if seen.shape != "bar" and not seen.cut and seen.area >= SMALL
        ]
        for seen in whole:
            reasons += _faults(seen, known.get(_index(seen, views[frame])))
        reasons += _still(views, frame)
        verdicts.append(Verdict(frame, len(reading.things), tuple(reasons)))
    track = [(frame, float(view), 0.0) for frame, view in enumerate(views) if wholes[frame]]
    return verdicts, [track]


def _views(wholes: Sequence[Sequence[Seen]]) -> np.ndarray:
    """Returns the offset of the view at each frame [T] in pixels: the bars' phase, unwrapped over time. In a frame
    without a complete bar the offset stays as it was. A step of more than half a spacing per frame is aliased to a
    smaller one in the other direction.
    """
    views = np.zeros(len(wholes))
    for frame, whole in enumerate(wholes):
        before = views[frame - 1] if frame else 0.0
        if not whole:
            views[frame] = before
            continue
        # The circular mean: with a spacing of 40, phases 1 and 39 are neighbours.
        angles = np.exp(-2j * np.pi * np.array([seen.x for seen in whole]) / BAR_SPACING)
        phase = float(np.angle(angles.mean())) / (2 * np.pi) * BAR_SPACING
        step = (phase - before + BAR_SPACING / 2) % BAR_SPACING - BAR_SPACING / 2
        views[frame] = before + step if frame else phase
    return views


def _still(views: np.ndarray, frame: int) -> Iterable[Reason]:
    """Reports a view that stands still. The limit allows for turning points, where the mean speed is half as high."""
    near = views[max(0, frame - AROUND) : frame + AROUND + 1]
    steps = np.abs(near[SPAN:] - near[:-SPAN]) / SPAN
    if len(steps) >= FEW and steps.mean() < LEAST_SPEED:
        yield Reason(
            "motion", f"the view moves {steps.mean():.2f} px per frame; in the toy world it never stands still"
        )


def _index(seen: Seen, view: float) -> int:
    return round((seen.x + view) / BAR_SPACING)


def _colours(wholes: Sequence[Sequence[Seen]], views: np.ndarray) -> dict[int, str]:
    """Returns the colour of each bar by its index in the row: the most frequent one of its first sightings."""
    sightings: dict[int, list[str]] = {}
    for whole, view in zip(wholes, views, strict=True):
        for seen in whole:
            if seen.colour:
                sightings.setdefault(_index(seen, view), []).append(seen.colour)
    return {index: Counter(found[:FIRST_SIGHTINGS]).most_common(1)[0][0] for index, found in sightings.items()}


def _spacing(whole: Sequence[Seen]) -> Iterable[Reason]:
    if not whole:
        yield Reason("missing", "no bars")
        return
    places = [seen.x for seen in whole]
    if places[0] > EDGE + SPACING_TOLERANCE or places[-1] < WIDTH - EDGE - SPACING_TOLERANCE:
        yield Reason("missing", f"no complete bar within {EDGE:g} px of an edge; bars at {_listed(places)}")
    for distance in np.diff(places):
        if abs(distance - BAR_SPACING) > SPACING_TOLERANCE:
            kind = "missing" if distance > BAR_SPACING else "extra"
            yield Reason(kind, f"bars {distance:.0f} px apart, not {BAR_SPACING:g}")


def _faults(seen: Seen, colour: str | None) -> Iterable[Reason]:
    if seen.colour is None:
        yield Reason("colour", str(seen))
    elif seen.colour != colour:
        yield Reason("identity", f"{seen}, {colour} before")
    if not WIDTHS[0] <= seen.area / HEIGHT <= WIDTHS[1]:
        yield Reason("size", f"{seen} {seen.area / HEIGHT:.0f} px wide, not {BAR_WIDTH:g}")


def _listed(places: Sequence[float]) -> str:
    return ", ".join(f"{place:.0f}" for place in places)
