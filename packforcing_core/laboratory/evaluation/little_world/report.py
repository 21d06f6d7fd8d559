"""The checker's report on a video: a verdict with reasons for each frame, and rates over any range of frames."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace

REASONS = (
    *("background", "missing", "extra", "colour", "shape", "size", "position", "identity"),
    *("place", "motion", "speed", "course", "stay"),
)
"""Kinds of errors in a frame. `identity`: a property that the prompt leaves open differs from the first sightings.
`place`: the object did not begin where the prompt says. `motion`: it stands still. `speed`: it is faster or slower than
in the rest of the video. `course`: it turns without a wall, or is suddenly elsewhere. `stay`: it should have left.
"""


@dataclass(frozen=True)
class Reason:
    """An error in a frame. `kind` is one of REASONS; `text` describes it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The errors in one frame, given by its number in the video or scene. `seen` is the number of
    objects found in it.
    """

    frame: int
    seen: int
    reasons: tuple[Reason, ...] = ()

    @property
    def right(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Motion:
    """`speed` is the median speed in pixels per frame of all complete sightings; None if there are none. `frozen` is
    the fraction of frames, among those where motion can be measured, in which nothing has moved for FREEZE_FRAMES
    frames. `jumps` are the frames in which an object is farther from its last position than it can have moved.
    """

    speed: float | None = None
    frozen: float = 0.0
    jumps: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorldReport:
    """The report on a video. `subject` is the prompt, or the scene's prompt. `position_error` is the mean distance in
    pixels from the scene's ground truth; None if only a prompt was given. All rates are fractions of the frames, 0..1.
    """

    subject: str
    verdicts: tuple[Verdict, ...]
    motion: Motion
    position_error: float | None = None

    @property
    def right(self) -> float:
        """Fraction of frames without any error."""
        return self._free_of(*REASONS)

    @property
    def objects_right(self) -> float:
        """Fraction of frames without any error, apart from a wrong background."""
        return self._free_of(*(kind for kind in REASONS if kind != "background"))

    @property
    def background_right(self) -> float:
        return self._free_of("background")

    @property
    def count_right(self) -> float:
        return self._free_of("missing", "extra")

    @property
    def colours_right(self) -> float:
        """Fraction of frames in which no object is missing and none has a wrong colour."""
        return self._free_of("missing", "colour")

    @property
    def identity_kept(self) -> float:
        """Fraction of frames in which every object is the one of the prompt or, where the prompt leaves it open, the
        one first seen.
        """
        return self._free_of("colour", "shape", "identity")

    def between(self, first: int, stop: int) -> WorldReport:
        """Returns the report of frames `first` to `stop` - 1: their verdicts and jumps. Speed and freezing remain those
        of the whole video.
        """
        verdicts = tuple(verdict for verdict in self.verdicts if first <= verdict.frame < stop)
        jumps = tuple(frame for frame in self.motion.jumps if first <= frame < stop)
        return replace(self, verdicts=verdicts, motion=replace(self.motion, jumps=jumps))

    def rates(self) -> dict[str, float]:
        names = ("right", "objects_right", "background_right", "count_right", "colours_right", "identity_kept")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict:
        wrong = {verdict.frame: [reason.text for reason in verdict.reasons] for verdict in self.verdicts}
        kinds = Counter(kind for verdict in self.verdicts for kind in {reason.kind for reason in verdict.reasons})
        return {
            "subject": self.subject,
            "frames": len(self.verdicts),
            **self.rates(),
            "speed": self.motion.speed,
            "frozen": self.motion.frozen,
            "jumps": list(self.motion.jumps),
            "position_error": self.position_error,
            "wrong_frames_by_reason": {kind: kinds[kind] for kind in REASONS if kinds[kind]},
            "wrong": {str(frame): texts for frame, texts in wrong.items() if texts},
        }

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2)

    def _free_of(self, *kinds: str) -> float:
        if not self.verdicts:
            return 1.0
        wrong = sum(any(reason.kind in kinds for reason in verdict.reasons) for verdict in self.verdicts)
        return 1 - wrong / len(self.verdicts)
