"""The allowed range of every number from the user: from widgets, links, JSON, command line or job files."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import PackForcingError
from .geometry import MAX_FPS, MAX_SECONDS, MAX_SIDE, SIZE_MULTIPLE

_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Range:
    """From `least` to `most`; with `above`, excluding `least`. `whole`: whole numbers only."""

    least: float
    most: float
    whole: bool = False
    above: bool = False

    def __str__(self) -> str:
        what = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{what} above {self.least} and at most {self.most}"
        return f"{what} from {self.least} to {self.most}"

    def holds(self, value: Any) -> bool:
        """Whether `value` is a number in this range; True, False and text are not numbers."""
        # Accepts numbers of any library; a type checker cannot compare them.
        kind: Any = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return (self.least < value if self.above else self.least <= value) and bool(value <= self.most)


RANGES = {
    "seconds": Range(0, int(MAX_SECONDS), above=True),
    "frames": Range(1, int(MAX_SECONDS * MAX_FPS), whole=True),
    "width": Range(SIZE_MULTIPLE, MAX_SIDE, whole=True),
    "height": Range(SIZE_MULTIPLE, MAX_SIDE, whole=True),
    "fps": Range(0, int(MAX_FPS), above=True),
    "seed": Range(0, 2**64 - 1, whole=True),
    "frames_per_block": Range(1, 64, whole=True),
    "timesteps": Range(1, 1000),
    "shift": Range(0, 100, above=True),
    "blend_seconds": Range(0, int(MAX_SECONDS)),
    "given_seconds": Range(0, int(MAX_SECONDS), above=True),
    "denoise": Range(0, 1, above=True),
    "retake_from": Range(0, int(MAX_SECONDS)),
    "blocks_per_segment": Range(1, 1000, whole=True),
    "zoom": Range(1, 16, whole=True),
    "last_frames": Range(1, 1024, whole=True),
    "lora_strength": Range(-100, 100),
    "workers": Range(1, 10_000, whole=True),
    "attempts": Range(1, 1000, whole=True),
}
"""The ranges, by the name of the widget or option."""


def in_range(name: str, value: Any) -> Any:
    """`value` as a plain int or float. Raises PackForcingError that names the widget if it is out of range."""
    allowed = RANGES[name]
    if not allowed.holds(value):
        shown = repr(value)
        if len(shown) > _LONGEST_SHOWN:
            shown = f"{shown[:_LONGEST_SHOWN]}..."
        raise PackForcingError(f"{name} is {shown}; expected {allowed}.")
    return int(value) if allowed.whole else float(value)
