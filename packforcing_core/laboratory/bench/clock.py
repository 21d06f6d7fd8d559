"""Clocks: device events on a GPU, thread time on a CPU with one thread, otherwise wall time.

Runs alternate, so that other load on the machine slows all of them alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from types import MappingProxyType

import torch

Run = Callable[[], object]


class Laps:
    """Durations of the parts of a run, added up by name.

    laps = Laps(device)
    ...; laps.mark("steps"); ...; laps.mark("commit")
    laps.seconds()    # {"steps": 0.3, "commit": 0.1}
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return working_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def mark(self, name: str) -> None:
        """Ends the part that started at the previous mark."""
        self._marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Waits for the device."""
        synchronize(self._device)
        parts: dict[str, float] = defaultdict(float)
        for (_, began), (name, ended) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(began, float) and isinstance(ended, float):
                parts[name] += ended - began
            elif isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                parts[name] += began.elapsed_time(ended) / 1000
        return dict(parts)


def working_time() -> float:
    """Seconds on a CPU: of this thread if it is the only one, so that other programs hardly count."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Waits for work queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Run, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """The duration of one run, including the work that it queued."""
    synchronize(device)
    began = clock()
    run()
    synchronize(device)
    return clock() - began


def in_turns(
    runs: Mapping[str, Run],
    rounds: int,
    device: torch.device,
    warm_up: int = 1,
    before: Mapping[str, Run] = MappingProxyType({}),
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each run in each round. Each round starts with another run, so that no run always has the same
    neighbour.

    `before` maps a run to untimed work before it. The clock is wall time on a GPU and thread time elsewhere, unless
    `clock` is given.
    """
    names, clock = list(runs), clock or (time.perf_counter if device.type == "cuda" else working_time)
    for _ in range(warm_up):
        for name, run in runs.items():
            before.get(name, _nothing)()
            run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before.get(name, _nothing)()
            seconds[name].append(seconds_of(runs[name], device, clock))
    return seconds


def _nothing() -> None: ...


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios per round, so that a slow moment in both runs cancels out."""
    return median(a / b for a, b in zip(over, under, strict=True))


def p95(values: list[float]) -> float:
    """The 95th percentile of `values`."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]
