"""Checks shapes against a prompt: matches objects over time, and reports what is missing, changes or should be out of
sight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ....miniature.world import COLUMNS, HEIGHT, ROWS, WIDTH
from ..scientific import assign
from .course import Whole, course_faults
from .motion import Track
from .promise import Promise, Promised
from .reading import Reading, Seen
from .report import Reason, Verdict
from .scene import AWAY

FIRST_SIGHTINGS = 8  # the majority of these defines what the prompt leaves open
SMALL = 60.0  # square pixels; for smaller regions no colour is judged, and none counts as an extra object
SIZES = (200.0, 700.0)  # square pixels of a complete shape; drawn ones have 314 to 452
LONGEST_AWAY = 56  # frames out of sight of a shape that leaves and returns: 28, and the way to the edge and back
LONGEST_HIDDEN = 64  # frames behind another object that moves the same way
# Frames in sight of a shape that leaves and returns: first to the edge; later from it to the middle and back.
LONGEST_FIRST_STAY, LONGEST_STAY = 72, 180
BEGINNING = 8  # a shape first seen within this many frames has to be where the prompt says
PLACE_TOLERANCE = 8.0  # pixels; being cut by the frame's edge, or moving on, shifts the centre by up to this


@dataclass
class _Role:
    """An object of the prompt and its sightings by frame. `shape` and `colour` are None until known."""

    shape: str | None
    colour: str | None
    open: bool
    place: tuple[str, str] | None = None
    sightings: dict[int, Seen] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(word for word in (self.colour, self.shape or "shape") if word)

    def cost(self, seen: Seen) -> float:
        """Returns the matching cost of `seen`: a wrong colour costs more than a wrong shape, and that more than
        distance; specks cost extra.
        """
        wrong_colour = self.colour is not None and seen.colour != self.colour
        wrong_shape = None not in (self.shape, seen.shape) and seen.shape != self.shape
        last = next(reversed(self.sightings.values()), None)
        far = float(np.hypot(seen.x - last.x, seen.y - last.y)) / WIDTH if last else 0.0
        return 100.0 * wrong_colour + 20.0 * wrong_shape + 30.0 * far + 15.0 * (seen.area < SMALL)


def check_shapes(readings: Sequence[Reading], promise: Promise) -> tuple[list[Verdict], list[Track]]:
    """Returns a verdict for each frame, and the track of each object."""
    roles = [_role(thing, readings) for thing in promise.things]
    reasons: list[list[Reason]] = []
    for frame, reading in enumerate(readings):
        found = []
        if reading.background != promise.background:
            found.append(Reason("background", f"background {reading.background}, not {promise.background}"))
        found += _cast(roles, frame, reading)
        reasons.append(found)
    for role in roles:
        for frame in _absences(role, len(readings), promise.kind):
            reasons[frame].append(Reason("missing", f"no {role}"))
        for frame, reason in course_faults(_wholes(role), promise.kind):
            reasons[frame].append(reason)
        for frame in _stays(role) if promise.kind == "return" else ():
            reasons[frame].append(Reason("stay", f"the {role} should have left"))
        if text := _misplaced(role):
            for found in reasons:
                found.append(Reason("place", text))
    verdicts = [Verdict(frame, len(reading.things), tuple(reasons[frame])) for frame, reading in enumerate(readings)]
    return verdicts, [_track(role) for role in roles]


def _role(thing: Promised, readings: Sequence[Reading]) -> _Role:
    """Returns a role. A property that the prompt leaves open is the most frequent one of the first sightings in which
    it can be recognised.
    """
    if thing.colour is not None:
        return _Role(thing.shape, thing.colour, open=False, place=thing.place)
    seen = [seen for reading in readings for seen in reading.things if seen.area >= SMALL]
    shapes, colours = [one.shape for one in seen if one.shape], [one.colour for one in seen if one.colour]
    return _Role(_first(shapes), _first(colours), open=True, place=thing.place)


def _first(names: Sequence[str]) -> str | None:
    return Counter(names[:FIRST_SIGHTINGS]).most_common(1)[0][0] if names else None


def _cast(roles: Sequence[_Role], frame: int, reading: Reading) -> Iterable[Reason]:
    """Assigns the objects of a frame to the roles at minimum total cost; yields the errors of the assigned objects and
    those that are left over.
    """
    costs = np.array([[role.cost(seen) for seen in reading.things] for role in roles])
    left = list(reading.things)
    for row, column in assign(costs.reshape(len(roles), len(left))):
        role, seen = roles[row], reading.things[column]
        role.sightings[frame] = seen
        left.remove(seen)
        if seen.area >= SMALL:
            yield from _faults(role, seen)
    yield from (Reason("extra", f"also a {seen}") for seen in left if seen.area >= SMALL)


def _faults(role: _Role, seen: Seen) -> Iterable[Reason]:
    text = f"{seen}, expected a {role}"
    if role.colour is None or seen.colour != role.colour:
        yield Reason("identity" if role.open and seen.colour else "colour", text)
    if seen.shape is None:
        if not (seen.cut or seen.touching):
            yield Reason("shape", text)
    elif seen.shape != role.shape:
        yield Reason("identity" if role.open else "shape", text)
    if seen.shape is not None and not seen.touching and not SIZES[0] <= seen.area <= SIZES[1]:
        yield Reason("size", f"{seen} of {seen.area:.0f} square pixels; expected {SIZES[0]:g} to {SIZES[1]:g}")


def _absences(role: _Role, frames: int, kind: str) -> Iterable[int]:
    """Yields the frames in which an object is missing without reason: neither beyond the edge it left through, nor
    behind another object.
    """
    sighted = [-1, *role.sightings, frames]
    for before, after in pairwise(sighted):
        gap = range(before + 1, after)
        if not gap:
            continue
        ends = [role.sightings[end] for end in (before, after) if end in role.sightings]
        if kind == "return" and ends and all(end.cut for end in ends):
            yield from gap[LONGEST_AWAY:]
        elif not (ends and all(end.touching for end in ends) and len(gap) <= LONGEST_HIDDEN):
            yield from gap


def _wholes(role: _Role) -> dict[int, Whole]:
    """Returns the sightings that show the complete object, so that centre and area are valid."""
    whole = ((frame, seen) for frame, seen in role.sightings.items() if seen.shape and not (seen.cut or seen.touching))
    return {frame: Whole(seen.x, seen.y, seen.area) for frame, seen in whole}


def _stays(role: _Role) -> Iterator[int]:
    """Yields the frames in which an object that leaves and returns has been in sight for too long."""
    length, before, longest = 0, None, LONGEST_FIRST_STAY
    for frame in role.sightings:
        if before is not None and frame - before > AWAY[0] // 2:
            length, longest = 0, LONGEST_STAY
        length, before = length + 1, frame
        if length > longest:
            yield frame


def _misplaced(role: _Role) -> str | None:
    """Returns the error in an object's initial position; None if it is right or the prompt does not give it."""
    if role.place is None or not role.sightings:
        return None
    frame, seen = next(iter(role.sightings.items()))
    if frame >= BEGINNING:
        return None
    for name, names, at, size in zip(role.place, (ROWS, COLUMNS), (seen.y, seen.x), (HEIGHT, WIDTH), strict=True):
        part, index = size / len(names), names.index(name)
        if not index * part - PLACE_TOLERANCE <= at <= (index + 1) * part + PLACE_TOLERANCE:
            return f"{seen} at first, not at the {' '.join(role.place)}"
    return None


def _track(role: _Role) -> Track:
    return [(frame, seen.x, seen.y) for frame, seen in role.sightings.items() if seen.shape and not seen.cut]
