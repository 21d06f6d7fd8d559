"""The folder of a study: its settings, and one file per row and case, written completely or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import PackForcingError
from ...folder.files import FolderError, locked, read_json, write_json
from ...folder.fingerprint import fingerprint
from .cases import Case
from .recall import Question
from .rows import Row

LARGEST = 4 << 20  # bytes of one result


@dataclass(frozen=True)
class Job:
    """One video, or one question: a row and a case."""

    row: Row
    case: Case | Question


@dataclass(frozen=True)
class StudyFolder:
    """`settings` apply to every video of the folder: weights, seconds, dtype, sampling, version. `compressor`
    identifies the trained branch, which only some rows use: results of those rows with another branch count as missing.
    """

    path: Path
    settings: Mapping[str, Any]
    compressor: str = ""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Creates the folder or continues it. Raises PackForcingError if it holds a study with other settings, or
        another process uses it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            self._agree()
            yield

    def _agree(self) -> None:
        file, wanted = self.path / "study.json", dict(self.settings)
        if not file.exists():
            write_json(file, wanted)
            return
        found = read_json(file, LARGEST)
        if found != wanted:
            names = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
            raise PackForcingError(
                f"{self.path} holds a study with other settings ({', '.join(names) or 'more of them'}), so its "
                "results cannot be mixed with new ones. Choose another --output, or remove that folder."
            )

    def key(self, job: Job) -> str:
        """A key of everything, except the settings, that decides the job's result."""
        used = self.compressor if job.row.needs_training else ""
        return fingerprint([job.row.as_dict(), case_facts(job.case), used])[:16]

    def write(self, job: Job, result: Mapping[str, object]) -> None:
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": self.key(job), "row": job.row.name, **case_facts(job.case), **result})

    def read(self, job: Job) -> dict | None:
        """The result of a job; None if it is missing, damaged, or from another definition of the row."""
        try:
            result = read_json(self._path(job), LARGEST)
        except FolderError:
            return None
        return result if isinstance(result, dict) and result.get("key") == self.key(job) else None

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if self.read(job) is None]

    def _path(self, job: Job) -> Path:
        return self.path / "results" / _plain(job.row.name) / f"{_plain(job.case.name)}.json"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def case_facts(case: Case | Question) -> dict:
    """What decides a case, by name."""
    return {field.name: getattr(case, field.name) for field in fields(case)}
