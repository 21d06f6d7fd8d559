"""Runs jobs in several processes. If a process is killed, its job is run again."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

ATTEMPTS = 3


@dataclass(frozen=True)
class Finished:
    """A finished job with its result, or with an error message (empty: none)."""

    job: Any
    answer: Any
    problem: str = ""


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Any

    def give(self, job: Any) -> None:
        self.job = job
        with suppress(OSError):  # It has died: reading from it says so.
            self.connection.send(job)

    def dismiss(self) -> None:
        self.connection.close()
        self.process.join()


def run_jobs(
    jobs: Sequence[Any],
    load: Callable[[], Any],
    work: Callable[[Any, Any], Any],
    workers: int,
    attempts: int = ATTEMPTS,
) -> Iterator[Finished]:
    """Yields the jobs as they finish, in any order. Each worker calls `load()` once and runs `work(loaded, job)`.

    `load`, `work`, the jobs and the answers travel by pickle, jobs are hashable. An exception is that job's problem and
    stops no other. A worker that dies is replaced and its job given out again, `attempts` times in all. The workers end
    with the iterator, and when this process dies.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    deaths: Counter[Any] = Counter()
    crew: list[_Worker] = []
    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                crew.append(_hire(context, load, work, waiting.popleft()))
            ready = wait([worker.connection for worker in crew])
            for worker in [worker for worker in crew if worker.connection in ready]:
                try:
                    answer, problem = worker.connection.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    worker.dismiss()
                    deaths[worker.job] += 1
                    if deaths[worker.job] < attempts:
                        waiting.append(worker.job)
                    else:
                        times = f"{attempts} processes that had it in hand"
                        yield Finished(worker.job, None, f"{times} ended, the last with code {worker.process.exitcode}")
                    continue
                done = worker.job
                if waiting:
                    worker.give(waiting.popleft())
                else:
                    crew.remove(worker)
                    worker.dismiss()
                yield Finished(done, answer, problem)
    finally:
        for worker in crew:
            worker.process.terminate()
            worker.dismiss()


def _hire(context: SpawnContext, load: Callable, work: Callable, job: Any) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, load, work), daemon=True)
    process.start()
    theirs.close()  # Only so does its end close when the worker dies.
    worker = _Worker(process, ours, None)
    worker.give(job)
    return worker


def _serve(connection: Connection, load: Callable[[], Any], work: Callable[[Any, Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of the terminal's processes; the first decides.
    loaded = load()
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (work(loaded, job), "")
        except Exception:  # One failed job must not stop the others.
            answer = (None, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return
