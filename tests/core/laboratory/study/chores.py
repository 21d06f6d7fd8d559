"""Work for the tests of the workers: it needs no torch, so that its processes start at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from packforcing_core.laboratory.study.workers import run_jobs


@dataclass(frozen=True)
class Chore:
    """`kind`: work, fail, die (each time), die_once, sleep."""

    name: str
    folder: Path
    kind: str = "work"

    @property
    def log(self) -> Path:
        return self.folder / self.name

    def tries(self) -> list[int]:
        """The processes that have had it in hand."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


def load() -> int:
    return 7


def work(loaded: int, chore: Chore) -> str:
    with open(chore.log, "a") as file:
        file.write(f"{os.getpid()}\n")
    if chore.kind == "fail":
        raise ValueError(f"{chore.name} is broken")
    if chore.kind == "die" or (chore.kind == "die_once" and len(chore.tries()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if chore.kind == "sleep":
        time.sleep(2)
    return f"{chore.name} by {loaded}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    list(run_jobs([Chore("one", folder, "sleep"), *(Chore(f"{i}", folder, "sleep") for i in range(60))], load, work, 1))
