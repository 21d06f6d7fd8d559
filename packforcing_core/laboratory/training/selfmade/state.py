"""The state of a run besides its clips and weights: the time used, and the number of clips."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ....errors import PackForcingError


@dataclass
class State:
    """`seconds` is the time used by all runs; `clips` is the number of clips once it is decided, else None. `asked` are
    the settings that a resumed run must not change.
    """

    path: Path
    asked: dict[str, str]
    seconds: float = 0.0
    clips: int | None = None
    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()

    @classmethod
    def read(cls, path: Path, asked: dict[str, str], clock: Callable[[], float] = time.monotonic) -> State:
        """Reads the state of the folder, or creates one. Raises PackForcingError if the folder was started with other
        settings.
        """
        if not path.exists():
            return cls(path, asked, clock=clock)
        told = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in asked.items() if told["asked"].get(name) != value]
        if other:
            name = other[0]
            raise PackForcingError(
                f"{path.parent} was started with {name} {told['asked'].get(name)!r}; now it is {asked[name]!r}. "
                "Continue with the same settings, or choose another --folder."
            )
        return cls(path, asked, told["seconds"], told["clips"], clock)

    @property
    def clips_made(self) -> int:
        """The number of clips. Raises PackForcingError if it is not decided yet."""
        if self.clips is None:
            raise PackForcingError("The number of clips is not decided yet; generate them first.")
        return self.clips

    @property
    def used(self) -> float:
        """Seconds used by all runs, including this one."""
        return self.seconds + self.clock() - self._since

    @property
    def hours(self) -> float:
        return self.used / 3600

    def write(self) -> None:
        """Writes the state with the time used so far."""
        told = {"asked": self.asked, "seconds": self.used, "clips": self.clips}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps(told, indent=1), encoding="utf-8")
        os.replace(part, self.path)
