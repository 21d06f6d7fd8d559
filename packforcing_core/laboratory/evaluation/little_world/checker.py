"""The checker of the toy world: verifies that a video shows what its prompt or scene describes.

Against a scene (`check_scene`) every property has a ground truth. This is used for reconstructions, and to measure the
checker's own error. Against a prompt (`check_video`) every frame must show what the prompt names, with two exceptions:
an object may be hidden behind another one, and one that "leaves and returns" may be out of sight. What a prompt leaves
open, such as the colour of "a shape", is defined by its first sightings in the video, and must not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ....errors import PackForcingError
from ....miniature.world import HEIGHT, WIDTH
from ..scientific import assign
from .bars import check_bars
from .motion import Track, motion_of
from .promise import parse_prompt
from .prompt import describe
from .reading import Reading, Seen, read_frame
from .report import Reason, Verdict, WorldReport
from .scene import Scene
from .shapes import check_shapes
from .truth import Visible, truth_at

MUST_SEE = 100.0  # visible square pixels; of less, a blurred frame may not show the colour
WHOLE = 0.97  # visible fraction from which a shape must be recognised
POSITION_TOLERANCE = 3.0  # pixels
NEAR = 12.0  # pixels; any region this close to a barely visible object is accepted as it
SMALL = 60.0  # square pixels; smaller unmatched regions are ignored
FAR = 16.0  # pixels; a region of another colour farther away than this is another object


def check_video(frames: Iterable[np.ndarray], prompt: str) -> WorldReport:
    """Checks a video, uint8 [HEIGHT, WIDTH, 3] per frame, against its prompt.

    Raises PackForcingError if the prompt is not of the toy world, or if the frames have another size or dtype.
    """
    return check_readings(read_video(frames), prompt)


def read_video(frames: Iterable[np.ndarray]) -> list[Reading]:
    """Returns what each frame shows; the prompt is not needed. Raises PackForcingError if frames have another size or
    dtype.
    """
    return [read_frame(_checked(frame)) for frame in frames]


def check_readings(readings: Sequence[Reading], prompt: str) -> WorldReport:
    """Same as `check_video`, for a video or a part of one that `read_video` has read."""
    promise = parse_prompt(prompt)
    verdicts, tracks = (check_bars if promise.kind == "pan" else check_shapes)(readings, promise)
    return WorldReport(prompt, tuple(verdicts), motion_of(tracks))


def check_scene(frames: Iterable[np.ndarray], scene: Scene, first: int = 0) -> WorldReport:
    """Checks frames `first`, `first` + 1, ... of a scene's video (drawn, or decoded from latents) against the scene."""
    verdicts, errors = [], []
    tracks: dict[int, list[tuple[int, float, float]]] = {}
    for number, frame in enumerate(frames, first):
        reading, truth = read_frame(_checked(frame)), truth_at(scene, number)
        reasons, pairs = _compare(reading, truth)
        if reading.background != scene.background:
            reasons.insert(0, Reason("background", f"background {reading.background}, not {scene.background}"))
        verdicts.append(Verdict(number, len(reading.things), tuple(reasons)))
        for index, seen in pairs:
            errors.append(float(np.hypot(seen.x - truth[index].x, seen.y - truth[index].y)))
            if truth[index].share >= WHOLE:
                tracks.setdefault(index, []).append((number, seen.x, seen.y))
    error = float(np.mean(errors)) if errors else None
    return WorldReport(describe(scene), tuple(verdicts), motion_of(list[Track](tracks.values())), error)


def _checked(frame: np.ndarray) -> np.ndarray:
    if frame.shape != (HEIGHT, WIDTH, 3) or frame.dtype != np.uint8:
        raise PackForcingError(
            f"A frame is {frame.dtype} {list(frame.shape)}; the toy world's are uint8 [{HEIGHT}, {WIDTH}, 3]: "
            "render at that size, or leave the checker out."
        )
    return frame


def _compare(reading: Reading, truth: tuple[Visible, ...]) -> tuple[list[Reason], list[tuple[int, Seen]]]:
    """Returns the errors in a frame, and the matched pairs (index in the truth, object seen)."""
    due = [index for index, thing in enumerate(truth) if thing.area >= MUST_SEE]
    slivers = [thing for thing in truth if 0 < thing.area < MUST_SEE]
    left = list(reading.things)
    reasons: list[Reason] = []
    pairs: list[tuple[int, Seen]] = []
    costs = np.array([[_cost(truth[index], seen) for seen in left] for index in due])
    for row, column in assign(costs.reshape(len(due), len(left))):
        thing, seen = truth[due[row]], reading.things[column]
        if not (seen.colour != thing.colour and _distance(thing, seen) > FAR):
            left.remove(seen)
            pairs.append((due[row], seen))
            reasons += _faults(thing, seen)
    found = {index for index, _ in pairs}
    missing = [f"{truth[index].colour} {truth[index].shape}" for index in due if index not in found]
    extra = [
        seen for seen in left if seen.area >= SMALL and not any(_distance(thing, seen) < NEAR for thing in slivers)
    ]
    reasons += [Reason("missing", f"no {name}") for name in missing]
    reasons += [Reason("extra", f"also a {seen}") for seen in extra]
    return reasons, pairs


def _faults(thing: Visible, seen: Seen) -> Iterable[Reason]:
    if seen.colour != thing.colour:
        yield Reason("colour", f"{seen}, expected {thing.colour}")
    # An object at the frame's edge or beside another object may be partly hidden.
    partly = seen.shape is None and (seen.cut or seen.touching)
    if thing.share >= WHOLE and seen.shape != thing.shape and not partly:
        yield Reason("shape", f"{seen}, expected a {thing.shape}")
    if (away := _distance(thing, seen)) > POSITION_TOLERANCE:
        yield Reason("position", f"{seen}, {away:.1f} px away from its position")


def _distance(thing: Visible, seen: Seen) -> float:
    return float(np.hypot(seen.x - thing.x, seen.y - thing.y))


def _cost(thing: Visible, seen: Seen) -> float:
    wrong_shape = seen.shape is not None and seen.shape != thing.shape
    return _distance(thing, seen) + 30.0 * (seen.colour != thing.colour) + 10.0 * wrong_shape
