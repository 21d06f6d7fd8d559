"""Runs a study: every row with every seed and every question, in any order, resuming from existing results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ... import __version__
from ...miniature.world import FPS
from ..evaluation.scientific import ndimage, opencv
from .answers import Answers
from .cases import Case, case_of
from .folder import Job, StudyFolder
from .readings import moments_of, read_film
from .recall import AWAY, Question
from .rows import Row
from .subject import Load, Subject, render_row
from .workers import run_jobs


@dataclass(frozen=True)
class Progress:
    """`done` of `total` results exist; `seconds_left` is None before the first new one. `problem` is the error of
    `job`.
    """

    done: int
    total: int
    seconds_left: float | None = None
    job: Job | None = None
    problem: str = ""


def jobs_of(rows: Sequence[Row], seeds: Sequence[int], questions: Sequence[int] = ()) -> list[Job]:
    """The videos of `seeds` and the `questions` of those seeds. Seed by seed, so that a study that was stopped has
    whole seeds to compare.
    """
    films = [case_of(seed) for seed in seeds]
    asked = [Question(seed, away) for seed in questions for away in AWAY]
    cases: list[Case | Question] = [*asked, *films]
    jobs = [Job(row, case) for case in cases for row in rows]
    return [job for job in jobs if isinstance(job.case, Question) or not job.row.oracle]


def settings_of(subject: Subject, seconds: float, dtype: str) -> dict[str, Any]:
    """The settings that all videos of a study share, as stored in its folder."""
    denoising = subject.denoising
    return {
        "weights": subject.weights,
        "trained_compressor": subject.trained,
        "seconds": seconds,
        "dtype": dtype,
        "steps": len(denoising.schedule),
        "first_block_steps": len(denoising.of_block(0)),
        "version": __version__,
    }


def run_study(folder: StudyFolder, jobs: Sequence[Job], load: Load, seconds: float, workers: int) -> Iterator[Progress]:
    """Renders the missing videos and answers. The folder must be open; a yielded result is on disk.

    Raises PackForcingError if a library for reading videos is missing.
    """
    opencv()
    ndimage()
    missing = folder.missing(jobs)
    done, total = len(jobs) - len(missing), len(jobs)
    yield Progress(done, total)
    started = time.monotonic()
    work = partial(do_job, folder, seconds)
    for made, finished in enumerate(run_jobs(missing, partial(load_alone, load), work, workers), 1):
        done += not finished.problem
        left = (time.monotonic() - started) / made * (len(missing) - made)
        yield Progress(done, total, left, finished.job, finished.problem)


def load_alone(load: Load) -> Answers:
    """The subject for a worker that has one core."""
    torch.set_num_threads(1)
    opencv().setNumThreads(1)
    return Answers(load())


def do_job(folder: StudyFolder, seconds: float, answers: Answers, job: Job) -> None:
    """Renders, measures and saves one video or answer, with the core seconds that it took."""
    started = time.process_time()
    if isinstance(job.case, Question):
        found = answers.to(job.case, job.row)
        folder.write(job, {"render_seconds": time.process_time() - started, "reading_seconds": 0.0, **found})
        return
    frames = render_row(answers.subject, job.row, job.case, seconds)
    rendered = time.process_time()
    found = read_film(frames, job.case.prompt, FPS, moments_of(seconds))
    spent = {"render_seconds": rendered - started, "reading_seconds": time.process_time() - rendered}
    folder.write(job, {**spent, **found})
