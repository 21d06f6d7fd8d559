"""The checker's report on a video: a verdict with reasons per frame, and rates over any range of frames."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace

REASONS = (
    *("background", "missing", "extra", "colour", "shape", "size", "position", "identity"),
    *("place", "motion", "speed", "course", "stay"),
)
"""What can be wrong with a frame. `identity`: it is not what it was when first seen, where the prompt left it open.
`place`: the video did not begin where the prompt says. `motion`: it stands still; `speed`: it is faster or slower than
in the rest of the video; `course`: it turns in mid-air or is suddenly elsewhere; `stay`: it should have left.
"""


@dataclass(frozen=True)
class Reason:
    """`kind` is one of REASONS; `text` says it of this frame."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """A frame (its number in the video or scene) and what is wrong with it. `seen`: how many things it shows."""

    frame: int
    seen: int
    reasons: tuple[Reason, ...] = ()

    @property
    def right(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Motion:
    """`speed`: median, pixels a frame, of all that is wholly in sight; None where nothing ever is. `frozen`: the share
    of the moments at which movement can be told where nothing has moved for FREEZE_FRAMES frames. `jumps`: frames at
    which something is where it cannot have come to since it was last seen."""

    speed: float | None = None
    frozen: float = 0.0
    jumps: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorldReport:
    """`subject`: the prompt, or what the scene would be prompted with. `position_error`: mean distance in pixels to
    the scene's ground truth, None where only a prompt was given. All rates are shares of the frames, 0..1."""

    subject: str
    verdicts: tuple[Verdict, ...]
    motion: Motion
    position_error: float | None = None

    @property
    def right(self) -> float:
        """Frames with nothing wrong."""
        return self._free_of(*REASONS)

    @property
    def objects_right(self) -> float:
        """Frames with the right things in the right colours and shapes, whatever the background."""
        return self._free_of(*(kind for kind in REASONS if kind != "background"))

    @property
    def background_right(self) -> float:
        return self._free_of("background")

    @property
    def count_right(self) -> float:
        return self._free_of("missing", "extra")

    @property
    def colours_right(self) -> float:
        """Frames in which nothing is missing and nothing has a wrong colour."""
        return self._free_of("missing", "colour")

    @property
    def identity_kept(self) -> float:
        """Frames in which no thing is another than was promised or, where the prompt left it open, than first seen."""
        return self._free_of("colour", "shape", "identity")

    def between(self, first: int, stop: int) -> WorldReport:
        """Of frames `first` to `stop` - 1 alone: their verdicts and jumps; speed and freezing stay the whole
        video's.
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
