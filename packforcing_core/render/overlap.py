"""Stages that run concurrently: the work on block i continues while block i+1 is sampled."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

E = TypeVar("E")
K = TypeVar("K")
R = TypeVar("R")


def overlapped(
    events: Iterable[E], kind: type[K], work: Callable[[K], R], ahead: int = 1
) -> Generator[E | R, None, None]:
    """Passes `events` through and runs `work` on each event of type `kind` in a thread; its results become events too.

    Results come in order, as soon as they are ready. At most `ahead` pieces of work wait, so memory is bounded. If the
    consumer stops or an event raises, work that was handed over is finished first, and no thread outlives the iterator.
    What `work` raises is raised here, and no later work is started.
    """
    context = contextvars.copy_context()

    failures: list[BaseException] = []

    def in_worker(event: K) -> R:
        if failures:  # The next piece may be waiting already; doing it after a failure would leave a gap.
            raise failures[0]
        try:
            with torch.inference_mode():  # Inference mode applies per thread.
                return work(event)
        except BaseException as error:
            failures.append(error)
            raise

    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="packforcing") as pool:
        for event in events:
            if isinstance(event, kind):
                waiting.append(pool.submit(context.run, in_worker, event))
            yield event
            while waiting and (waiting[0].done() or len(waiting) > ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
