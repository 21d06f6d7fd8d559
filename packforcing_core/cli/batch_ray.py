"""Batch jobs on Ray: one worker per GPU, or several that share the CPUs. A worker that dies is replaced.

The job of a dead worker goes to another worker, which resumes it from the shared folder. Ray's dashboard shows a task
per job by name, and the gauge `packforcing_blocks_done`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.metrics import Gauge
from rich.console import Console

from ..folder.blocks import numbered_files
from ..geometry import block_count
from .jobs import RAY_ADDRESS, Job, render_job
from .progress import build_console

LOOPBACK = "127.0.0.1"
WORKERS_WITHOUT_GPU = 2
_LOOK_EVERY = 1.0  # second
_ROOT = Path(__file__).resolve().parents[2]


class Renderer:
    """A worker: renders one job at a time."""

    def pid(self) -> int:
        return os.getpid()

    def render(self, job: Job) -> str:
        return render_job(job, build_console())


@contextmanager
def _cluster() -> Iterator[None]:
    """The cluster at RAY_ADDRESS, or one on this machine alone that ends with the batch."""
    ours = not ray.is_initialized()
    if ours:
        # Workers import this package from the driver's path, whether it is installed or not.
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))}
        # Given a host name, Ray would listen on all network interfaces.
        alone = {"address": "local", "_node_ip_address": LOOPBACK, "dashboard_host": LOOPBACK}
        place: dict[str, Any] = {} if os.environ.get(RAY_ADDRESS) else dict(alone)
        ray.init(runtime_env={"env_vars": variables}, log_to_driver=False, configure_logging=False, **place)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _share(workers: int | None) -> tuple[int, dict[str, float]]:
    """The number of workers, and the resources of each."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if gpus:
        return workers or gpus, {"num_gpus": 1 if workers is None or workers <= gpus else gpus / workers}
    count = workers or WORKERS_WITHOUT_GPU
    return count, {"num_cpus": resources.get("CPU", 1) / count}


def render_on_ray(jobs: Sequence[Job], workers: int | None, attempts: int, console: Console) -> dict[str, str]:
    """Renders all jobs; returns error messages by job name."""
    if not jobs:
        return {}
    with _cluster():
        count, share = _share(workers)
        return _Pool(jobs, min(count, len(jobs)), share, attempts, console).run()


class _Pool:
    """The workers, the waiting jobs, and which worker runs which job."""

    def __init__(self, jobs: Sequence[Job], workers: int, share: dict[str, float], attempts: int, console: Console):
        self._waiting = deque((job, 1) for job in jobs)
        self._workers, self._share, self._attempts, self._console = workers, share, attempts, console
        self._running: dict[ray.ObjectRef, tuple[ActorHandle, Job, int, ray.ObjectRef]] = {}
        self._problems: dict[str, str] = {}
        self._gauge = Gauge("packforcing_blocks_done", description="Finished blocks of a render", tag_keys=("job",))

    def run(self) -> dict[str, str]:
        actor_class: Any = ray.remote(Renderer)  # Ray adds methods to the class that its types do not declare.
        for _ in range(self._workers):
            self._give_work(actor_class.options(**self._share).remote())
        last_look = 0.0
        while self._running:
            done, _ = ray.wait(list(self._running), timeout=_LOOK_EVERY)
            for reference in done:
                worker, job, attempt, _ = self._running.pop(reference)
                if not self._finished(reference, job, attempt):
                    worker = actor_class.options(**self._share).remote()
                self._give_work(worker)
            if time.monotonic() - last_look > _LOOK_EVERY:
                self._tell()
                last_look = time.monotonic()
        return self._problems

    def _give_work(self, worker: ActorHandle) -> None:
        if not self._waiting:
            ray.kill(worker)
            return
        job, attempt = self._waiting.popleft()
        process = worker.pid.remote()
        reference = worker.render.options(name=f"render {job.name}").remote(job)
        self._running[reference] = worker, job, attempt, process

    def _finished(self, reference: ray.ObjectRef, job: Job, attempt: int) -> bool:
        """Whether the worker is still alive. A dead worker's job goes back to the front of the queue."""
        try:
            problem = ray.get(reference)
        except RayActorError:
            self._console.print(
                f"the worker of {job.name} died in attempt {attempt}; {block_count(_blocks(job))} finished"
            )
            if attempt < self._attempts:
                self._waiting.appendleft((job, attempt + 1))
            else:
                self._problems[job.name] = f"its worker died {attempt} times"
            return False
        except RayTaskError as error:
            problem = str(error)
        if problem:
            self._problems[job.name] = problem
        else:
            self._console.print(f"done: {job.video()}")
        return True

    def _tell(self) -> None:
        """Prints progress from the shared folder, which also holds the blocks of dead workers."""
        parts = []
        for _, job, _, process in self._running.values():
            blocks = _blocks(job)
            self._gauge.set(blocks, tags={"job": job.name})
            parts.append(f"{job.name}: {block_count(blocks)}{_named(process)}")
        self._console.print(" | ".join(parts) + f" | {len(self._waiting)} waiting")


def _blocks(job: Job) -> int:
    folder = job.folder / "blocks"
    return len(numbered_files(folder)) if folder.is_dir() else 0


def _named(process: ray.ObjectRef) -> str:
    """The process id of a worker, once it has started and while it lives."""
    try:
        return f" (process {ray.get(process, timeout=0)})"
    except (GetTimeoutError, RayActorError):
        return ""
