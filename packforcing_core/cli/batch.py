"""Render a list of jobs, one after the other or on the workers of a Ray cluster; run it again to resume."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
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
from ..ranges import in_range
from ..render.output import checked_output
from . import render
from .film import build_console

ENGINES = ("auto", "local", "ray")
LONGEST_LINE = 4_000_000
# What the batch decides itself, or what would make a job something other than one render to its end.
_NOT_OF_A_JOB = ("name", "folder", "output", "render_mode", "retake_from")
DONE = "done.json"
RAY_ADDRESS = "RAY_ADDRESS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "jobs",
        help='a file with one JSON object per line: options of `packforcing render`, such as {"name": "dusk", '
        '"prompt": "a lighthouse at dusk", "seed": 3}',
    )
    parser.add_argument("--folder", required=True, help="where videos and renders go, shared by all workers")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="auto: Ray where it is installed, else local; a Ray cluster of your own by the environment variable "
        "RAY_ADDRESS, else one is made that this machine alone can reach",
    )
    parser.add_argument("--workers", type=int, help="Ray: workers; default: one per GPU, or two on a machine without")
    parser.add_argument("--attempts", type=int, default=3, help="Ray: how often a job is tried when its worker dies")
    parser.add_argument(
        "--shared", default="{}", help='what all jobs share, as a JSON object: {"checkpoint": ..., "vae": ...}'
    )


@dataclass(frozen=True)
class Job:
    """One render: its name, and the whole command line of `packforcing render`."""

    name: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint(list(self.arguments))

    def is_done(self) -> bool:
        """Whether the very same job has been finished, and its video is still there."""
        return self.video() is not None

    def video(self) -> Path | None:
        """The video of the finished job."""
        try:
            done = read_json(self.folder / DONE, LONGEST_LINE)
            video = self.folder.with_name(checked_output(Path(done["video"])).name)
        except (PackForcingError, KeyError, TypeError):
            return None
        return video if done.get("job") == self.fingerprint and video.exists() else None

    def mark_done(self, video: Path) -> None:
        write_json(self.folder / DONE, {"job": self.fingerprint, "video": video.name})


def read_jobs(path: Path, folder: Path, shared: str = "{}") -> list[Job]:
    """The jobs of a file. PackForcingError names the line of one that is no job or has a name twice."""
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
            raise PackForcingError(f"{path}, line {number}: the name {jobs[-1].name!r} is there already.")
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
        raise PackForcingError("expected an object of plain values.")
    return {key.replace("-", "_"): value for key, value in given.items()}


def _job(options: dict[str, str | int | float | list], number: str, folder: Path) -> Job:
    name = checked_name(str(options.get("name", number)))
    own = folder / name
    words: list[str] = []
    for key, value in options.items():
        if key == "name":
            continue
        if key in _NOT_OF_A_JOB:
            raise PackForcingError(f"{key} is not an option of a job; give it a name.")
        words += _words(f"--{key.replace('_', '-')}", value)
    words += [f"--folder={own}", f"--output={own.with_name(name + '.mp4')}"]
    render.checked(parse_render(words))
    return Job(name, own, tuple(words))


def _words(option: str, value: str | int | float | list) -> list[str]:
    """An option and its value as the command line has them; of a switch, true is the option alone and false none."""
    action = _actions().get(option)
    if isinstance(value, bool) and action is not None and action.nargs == 0:
        return [option] if value else []
    if isinstance(value, list) and action is not None and isinstance(action.default, list):  # May be given again.
        return [f"{option}={each}" for each in value]
    return [f"{option}={','.join(map(str, value)) if isinstance(value, list) else value}"]


@lru_cache(maxsize=1)
def _actions() -> dict[str, argparse.Action]:
    return {name: action for action in _parser()._actions for name in action.option_strings}


class _Parser(argparse.ArgumentParser):
    """Raises where the usual one ends the program."""

    def error(self, message: str) -> NoReturn:
        raise PackForcingError(message)


def parse_render(words: Sequence[str]) -> argparse.Namespace:
    """The options of one `packforcing render`; PackForcingError where they are none."""
    return _parser().parse_args(words)


@lru_cache(maxsize=1)
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="packforcing render", allow_abbrev=False, add_help=False)
    render.add_arguments(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    if options.workers is not None:
        in_range("workers", options.workers)
    in_range("attempts", options.attempts)
    console = build_console()
    folder = Path(options.folder).absolute()
    jobs = read_jobs(Path(options.jobs), folder, options.shared)
    waiting = [job for job in jobs if not job.is_done()]
    console.print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them done before, into {folder}")
    if options.engine == "local" or (options.engine == "auto" and not ray_installed()):
        problems = {job.name: problem for job in waiting if (problem := render_job(job, console))}
    else:
        _close_the_door()
        from .batch_ray import render_on_ray  # Ray is an optional extra.

        problems = render_on_ray(waiting, options.workers, options.attempts, console)
    for name, problem in problems.items():
        console.print(f"failed: {name}: {problem}", style="red")
    console.print(f"{len(jobs) - len(problems)} of {len(jobs)} videos are in {folder}")
    return 1 if problems else 0


def _close_the_door() -> None:
    """Lets nobody else into the cluster that is about to be made: it is this machine's alone, and asks for a token.

    Before Ray is imported, which reads it then; versions before 2.52 know no tokens. A cluster of the user's own
    (RAY_ADDRESS) has its own rules.
    """
    if not os.environ.get(RAY_ADDRESS):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # On every system as Ray has it on two: otherwise newer versions take the loopback address for a mistake.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def ray_installed() -> bool:
    return importlib.util.find_spec("ray") is not None


def render_job(job: Job, console: Console) -> str:
    """Renders one job to its end, from where it stopped; returns what went wrong, nothing if all went well."""
    console.print(f"rendering {job.name}")
    try:
        job.mark_done(render.render_options(parse_render(job.arguments), console))
    except PackForcingError as error:
        return str(error)
    except Exception as error:  # A job that breaks must not take the others with it.
        traceback.print_exc()
        return repr(error)
    return ""
