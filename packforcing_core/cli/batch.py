"""Render a list of jobs, one after the other or on the workers of a Ray cluster; run it again to resume."""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
from pathlib import Path

from ..ranges import in_range
from .jobs import RAY_ADDRESS, read_jobs, render_job
from .progress import build_console

ENGINES = ("auto", "local", "ray")


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
        help="auto: Ray if it is installed, else local. Ray uses the cluster at RAY_ADDRESS (an environment variable), "
        "or starts one that only this machine can reach",
    )
    parser.add_argument(
        "--workers", type=int, help="Ray: number of workers; default: one per GPU, or two on a machine without a GPU"
    )
    parser.add_argument("--attempts", type=int, default=3, help="Ray: how many times a job is tried if its worker dies")
    parser.add_argument(
        "--shared", default="{}", help='what all jobs share, as a JSON object: {"checkpoint": ..., "vae": ...}'
    )


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
        _secure_local_cluster()
        from .batch_ray import render_on_ray  # Ray is an optional extra.

        problems = render_on_ray(waiting, options.workers, options.attempts, console)
    for name, problem in problems.items():
        console.print(f"failed: {name}: {problem}", style="red")
    console.print(f"{len(jobs) - len(problems)} of {len(jobs)} videos are in {folder}")
    return 1 if problems else 0


def _secure_local_cluster() -> None:
    """Secures the Ray cluster that is about to start: only this machine can reach it, and it requires a token.

    Call it before Ray is imported, which reads these variables at import. Ray before 2.52 has no tokens. The user's own
    cluster (RAY_ADDRESS) keeps its own rules.
    """
    if not os.environ.get(RAY_ADDRESS):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Set on every system: newer versions of Ray otherwise refuse the loopback address on some.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def ray_installed() -> bool:
    return importlib.util.find_spec("ray") is not None
