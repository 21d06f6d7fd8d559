"""Compare KV cache policies on the miniature: the same prompts and seeds for all, an exact checker, intervals."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from ...cli.progress import build_console
from ...devices import DTYPES
from ...errors import PackForcingError
from ...miniature.load import fast_dtype
from ..study.archive import pack, unpack
from ..study.drawing import draw_curves, draw_recall, draw_sheet
from ..study.folder import Job, StudyFolder
from ..study.page import CURVES_PICTURE, RECALL_PICTURE, SHEET_PICTURE, as_json, as_markdown, facts_of, replace_part
from ..study.readings import moments_of
from ..study.recall import AWAY, Question
from ..study.rows import QUICK, Row, base_row, chosen_rows, left_out, study_rows
from ..study.study import jobs_of, run_study, settings_of
from ..study.subject import Load, load_miniature
from ..study.tables import build_recall_tables, build_tables, whole_seeds

QUICK_SEEDS, QUICK_SECONDS, QUICK_QUESTIONS = 4, 15.0, 8
SEEDS, SECONDS, QUESTIONS = 16, 120.0, 32
TEST_SEED = 1000
"""Seeds from here on are for tests only: no decision about the miniature was based on them."""
SHEET_WORLDS = ("two", "return")
FILMS, QUESTIONS_ALONE = "films", "questions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="few rows, 4 seeds of 15 s: a trial that decides nothing")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="for results, tables and images; default: study, with --quick study-quick",
    )
    parser.add_argument("--rows", help="names of rows, separated by commas; default: all")
    parser.add_argument("--seeds", type=int, help=f"number of seeds; default: {SEEDS}")
    parser.add_argument(
        "--first-seed",
        type=int,
        help=f"first seed; default: {TEST_SEED} (no choice was based on seeds from there on), or 0",
    )
    parser.add_argument("--seconds", type=float, help=f"length of a video; default: {SECONDS:g}")
    parser.add_argument("--questions", type=int, help=f"number of recall questions of each kind; default: {QUESTIONS}")
    parser.add_argument("--reference", help="the row that all others are compared with; default: trained, or zero-shot")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one core each")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="dtype of the computation; auto: the faster one on this processor",
    )
    parser.add_argument(
        "--only",
        choices=(FILMS, QUESTIONS_ALONE),
        help="make only these; the tables show what exists of the others",
    )
    parser.add_argument("--weights", metavar="FILE", help="use this transformer instead of the package's")
    parser.add_argument(
        "--compressor",
        metavar="FILE",
        help="use this compressor instead of the package's; results in the folder that use no compressor are kept",
    )
    parser.add_argument("--pack", metavar="FILE", help="write all results into one small file, without images")
    parser.add_argument("--unpack", metavar="FILE", help="start from the results in a file of --pack")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--tables", action="store_true", help="write tables of the existing results; render nothing")
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="also write the tables between the marks of this page, and images beside it",
    )


def run(options: argparse.Namespace) -> int:
    if options.dtype == "auto":
        options.dtype = next(name for name, kind in DTYPES.items() if kind == fast_dtype())
    given = {"compressor": options.compressor, "model": options.weights}
    chosen = {name: Path(path) for name, path in given.items() if path}
    return study(options, partial(load_miniature, options.dtype, **chosen))


def study(options: argparse.Namespace, load: Load) -> int:
    """Runs the command for any subject."""
    console = build_console()
    seeds, seconds, questions = _amounts(options)
    subject = load()
    rows = _rows(options, subject.trained)
    if options.list:
        for row in rows:
            console.print(f"{row.name}: {row.as_dict()}")
        return 0
    reference = options.reference or base_row(subject.trained).name
    chosen_rows(rows, [reference])
    settings = settings_of(subject, seconds, options.dtype)
    folder = StudyFolder(_output(options), settings, subject.compressor)
    first = options.first_seed if options.first_seed is not None else 0 if options.quick else TEST_SEED
    jobs = jobs_of(rows, range(first, first + seeds), range(first, first + questions))
    wanted = [job for job in jobs if options.only in (None, _kind(job))]
    with folder.opened():
        if options.unpack:
            console.print(f"{unpack(folder, jobs, Path(options.unpack))} results are from {options.unpack}")
        problems = 0 if options.tables else _render(folder, wanted, load, seconds, options.workers, console)
        _write(folder, jobs, rows, reference, options, console)
        if options.pack:
            console.print(f"{pack(folder, jobs, Path(options.pack))} results are in {options.pack}")
    return 1 if problems else 0


def _kind(job: Job) -> str:
    return QUESTIONS_ALONE if isinstance(job.case, Question) else FILMS


def _output(options: argparse.Namespace) -> Path:
    return Path(options.output or ("study-quick" if options.quick else "study"))


def _amounts(options: argparse.Namespace) -> tuple[int, float, int]:
    defaults = (QUICK_SEEDS, QUICK_SECONDS, QUICK_QUESTIONS) if options.quick else (SEEDS, SECONDS, QUESTIONS)
    seeds = defaults[0] if options.seeds is None else options.seeds
    seconds = defaults[1] if options.seconds is None else options.seconds
    questions = defaults[2] if options.questions is None else options.questions
    amounts = (
        ("seeds", seeds, 2),
        ("seconds", seconds, 1),
        ("questions", questions, 2),
        ("workers", options.workers, 1),
    )
    for name, value, least in amounts:
        if not value >= least:
            raise PackForcingError(f"{name} is {value}; expected {least} or more.")
    return seeds, seconds, questions


def _rows(options: argparse.Namespace, trained: bool) -> tuple[Row, ...]:
    rows = study_rows(trained)
    if options.rows:
        return chosen_rows(rows, [name.strip() for name in options.rows.split(",")])
    return tuple(row for row in rows if row.name in QUICK) if options.quick else rows


def _render(folder: StudyFolder, jobs: list[Job], load: Load, seconds: float, workers: int, console: Console) -> int:
    """Renders what is missing; returns the number of failures."""
    problems = 0
    for progress in run_study(folder, jobs, load, seconds, workers):
        told = f"{progress.done} of {progress.total} results"
        if progress.job is None or progress.seconds_left is None:
            console.print(f"{told} exist already, in {folder.path}")
            continue
        name = f"{progress.job.row.name}, {progress.job.case.name}"
        if progress.problem:
            problems += 1
            console.print(f"failed: {name}: {progress.problem}", style="red")
        console.print(f"{told}, {_duration(progress.seconds_left)} left ({name})")
    return problems


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def _write(
    folder: StudyFolder,
    jobs: list[Job],
    rows: tuple[Row, ...],
    reference: str,
    options: argparse.Namespace,
    console: Console,
) -> None:
    found: dict[str, dict[str, dict[int, dict]]] = {kind: {} for kind in (FILMS, *AWAY)}
    for job in jobs:
        if result := folder.read(job):  # A row without a video, or without an answer, is left out of those tables.
            kind = job.case.away if isinstance(job.case, Question) else FILMS
            found[kind].setdefault(job.row.name, {})[job.case.seed] = result
    results = {kind: whole_seeds(of_kind) for kind, of_kind in found.items() if of_kind}
    films, answers = results.get(FILMS, {}), {away: results[away] for away in AWAY if away in results}
    tables = build_tables(films, reference, moments_of(folder.settings["seconds"])) if films else None
    recall = build_recall_tables(answers, reference) if len(answers) == len(AWAY) else None
    trained = bool(folder.settings["trained_compressor"])
    settings = {**folder.settings, "compressor": folder.compressor or "none"}
    facts = facts_of(shlex.join(["packforcing", *sys.argv[1:]]), settings, results.values(), left_out(trained))
    text = as_markdown(tables, recall, rows, facts)
    (folder.path / "study.md").write_text(text, encoding="utf-8")
    (folder.path / "tables.json").write_text(as_json(tables, recall, rows, facts), encoding="utf-8")
    places, filmed = [folder.path], [row for row in rows if row.name in films]
    if options.page:
        replace_part(Path(options.page), text)
        places.append(Path(options.page).parent)
    for place in places:
        if recall:
            draw_recall(recall, place / RECALL_PICTURE)
        if films:
            draw_curves(films, filmed, reference, place / CURVES_PICTURE)
            if all("pictures" in found for row in films.values() for found in row):
                draw_sheet(films, SHEET_WORLDS, place / SHEET_PICTURE)
            else:
                console.print("no new contact sheet: results from an archive have no images")
    console.print(text)
    console.print(f"tables and images are in {folder.path}")
