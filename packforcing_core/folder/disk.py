"""Disk writes during sampling: in order, in a separate thread, with a short queue."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

WAITING = 2
"""Length of the queue: a crash can lose this many finished blocks and the one that is being written."""


class Disk:
    """Runs pieces of work one after the other in a thread; `put` waits only if the queue is full.

        with Disk() as disk:
            disk.put(partial(store.save, done, take))

    If a piece raises, the next call raises that error and no later piece is run. Leaving the `with` waits for the rest.
    """

    def __init__(self, waiting: int = WAITING):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="packforcing-disk")
        self._waiting: deque[Future[None]] = deque()
        self._limit = waiting
        self._failure: BaseException | None = None

    def put(self, work: Callable[[], object]) -> None:
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._limit):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(contextvars.copy_context().run, self._do, work))

    def flush(self) -> None:
        """Waits until everything in the queue is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def _do(self, work: Callable[[], object]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            work()
        except BaseException as failure:
            self._failure = failure
            raise

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.flush()
