"""The jobs of a batch: reading them from a file, and rendering one of them."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from ..errors import PackForcingError
from ..folder.files import checked_name, read_json, write_json
from ..folder.fingerprint import fingerprint
from ..render.output import checked_output
from . import render

LONGEST_LINE = 4_000_000
# Options that the batch sets itself, or that would make a job more than one complete render.
_NOT_OF_A_JOB = ("name", "folder", "output", "render_mode", "retake_from")
DONE = "done.json"
RAY_ADDRESS = "RAY_ADDRESS"


@dataclass(frozen=True)
class Job:
    """One render: its name and the full command line of `packforcing render`."""

    name: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint(list(self.arguments))

    def is_done(self) -> bool:
        """Whether a job with the same options has been finished and its video still exists."""
        return self.video() is not None

    def video(self) -> Path | None:
        """The video of a finished job, else None."""
        try:
            done = read_json(self.folder / DONE, LONGEST_LINE)
            video = self.folder.with_name(checked_output(Path(done["video"])).name)
        except (PackForcingError, KeyError, TypeError):
            return None
        return video if done.get("job") == self.fingerprint and video.exists() else None

    def mark_done(self, video: Path) -> None:
        write_json(self.folder / DONE, {"job": self.fingerprint, "video": video.name})


def read_jobs(path: Path, folder: Path, shared: str = "{}") -> list[Job]:
    """The jobs in a file. Raises PackForcingError that names the line of an invalid job or a duplicate name."""
    try:
        common = _options(json.loads(shared))
    except (ValueError, RecursionError) as error:
        raise PackForcingError(f"--shared: {error}") from error
    jobs: list[Job] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            jobs.append(_job({**common, **_options(json.loads(line))}, f"job-{number:04}", folder))
        except (ValueError, RecursionError) as error:
            raise PackForcingError(f"{path}, line {number}: {error}") from error
        if jobs[-1].name.lower() in {job.name.lower() for job in jobs[:-1]}:
            raise PackForcingError(f"{path}, line {number}: the name {jobs[-1].name!r} is used twice.")
    if not jobs:
        raise PackForcingError(f"{path} holds no jobs.")
    return jobs


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            while line := file.readline(LONGEST_LINE):
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise PackForcingError(f"{path} cannot be read: {error}.") from error


def _options(given: object) -> dict[str, str | int | float | list]:
    if not isinstance(given, dict) or not all(isinstance(v, str | int | float | list) for v in given.values()):
        raise PackForcingError("expected a JSON object with plain values.")
    return {key.replace("-", "_"): value for key, value in given.items()}


def _job(options: dict[str, str | int | float | list], number: str, folder: Path) -> Job:
    name = checked_name(str(options.get("name", number)))
    own = folder / name
    words: list[str] = []
    for key, value in options.items():
        if key == "name":
            continue
        if key == "prompt_file":
            raise PackForcingError(
                "a job holds its prompt itself, so that a changed prompt is another job. Use prompt."
            )
        if key in _NOT_OF_A_JOB:
            raise PackForcingError(f"a job cannot set {key}, the batch does. Remove it and give the job a name.")
        words += _words(f"--{key.replace('_', '-')}", value)
    words += [f"--folder={own}", f"--output={own.with_name(name + '.mp4')}"]
    render.checked(parse_render(words))
    return Job(name, own, tuple(words))


def _words(option: str, value: str | int | float | list) -> list[str]:
    """An option and its value as command line words; for a switch, true gives the option alone, false nothing."""
    action = _actions().get(option)
    if isinstance(value, bool) and action is not None and action.nargs == 0:
        return [option] if value else []
    # An option that may be repeated.
    if isinstance(value, list) and action is not None and isinstance(action.default, list):
        return [f"{option}={each}" for each in value]
    return [f"{option}={','.join(map(str, value)) if isinstance(value, list) else value}"]


@lru_cache(maxsize=1)
def _actions() -> dict[str, argparse.Action]:
    return {name: action for action in _parser()._actions for name in action.option_strings}


class _Parser(argparse.ArgumentParser):
    """Raises an error where argparse's own parser exits the program."""

    def error(self, message: str) -> NoReturn:
        raise PackForcingError(message)


def parse_render(words: Sequence[str]) -> argparse.Namespace:
    """The options of one `packforcing render`. Raises PackForcingError if they are invalid."""
    return _parser().parse_args(words)


@lru_cache(maxsize=1)
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="packforcing render", allow_abbrev=False, add_help=False)
    render.add_arguments(parser)
    return parser


def render_job(job: Job, console: Console) -> str:
    """Renders one job, resuming if it was started before. Returns the error message, empty if it succeeded."""
    console.print(f"rendering {job.name}")
    try:
        job.mark_done(render.render_options(parse_render(job.arguments), console))
    except PackForcingError as error:
        return str(error)
    except Exception as error:  # One failed job must not stop the others.
        traceback.print_exc()
        return repr(error)
    return ""
