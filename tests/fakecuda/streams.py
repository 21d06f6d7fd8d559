"""Streams, events and the few calls of `torch.cuda` that the project makes, on a ledger's clocks."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .ledger import MAIN, Ledger


class Runtime:
    """What stands in for `torch.cuda` while a ledger counts."""

    def __init__(self, ledger: Ledger, memory: int) -> None:
        self._ledger, self._memory = ledger, memory
        self._tensors: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def replacements(self) -> list[tuple[Any, str, Callable]]:
        cuda = torch.cuda
        return [
            (cuda, "Stream", lambda device=None, **__: self._new_stream(device)),
            (cuda, "Event", lambda *_, **__: Event(self._ledger)),
            (cuda, "current_stream", lambda device=None: Stream(self._ledger, self._ledger.stream(device), device)),
            (cuda, "default_stream", lambda *_: Stream(self._ledger, MAIN)),
            (cuda, "stream", lambda stream: _Entered(self._ledger, stream)),
            (cuda, "synchronize", lambda *_: self._synchronize()),
            (cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=self._pin, cudaHostUnregister=lambda *_: 0)),
            (cuda, "device_count", lambda: 2),
            (cuda, "get_device_capability", lambda *_: (9, 0)),
            (cuda, "get_device_properties", lambda *_: SimpleNamespace(total_memory=self._memory)),
        ]

    def _new_stream(self, device: torch.device | None) -> Stream:
        return Stream(self._ledger, f"side {len(self._ledger.clocks) - 1}", device)

    def address(self, tensor: Tensor) -> int:
        """A number for the tensor's memory, by which it can be pinned."""
        self._tensors[id(tensor)] = tensor
        return id(tensor)

    def _pin(self, address: int, *_: Any) -> int:
        self._ledger.allocation(self._tensors[address]).pinned = True
        return 0

    def _synchronize(self) -> None:
        for name in list(self._ledger.clocks):
            self._ledger.host_waits("synchronize", name)


class Stream:
    """A queue of launches, by name."""

    def __init__(self, ledger: Ledger, name: str, device: torch.device | int | None = None) -> None:
        self._ledger, self.name = ledger, name
        self.device = device if isinstance(device, torch.device) else torch.device("cuda", device or 0)
        ledger.clocks.setdefault(name, Counter())

    def wait_stream(self, other: Stream) -> None:
        self._ledger.merge(self.name, self._ledger.clocks[other.name])

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._ledger)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self._ledger.merge(self.name, event.known)

    def synchronize(self) -> None:
        self._ledger.host_waits("synchronize", self.name)


class Event:
    """A moment of a stream."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self.known = ledger, Counter()

    def record(self, stream: Stream | None = None) -> None:
        self.known = Counter(self._ledger.clocks[stream.name if stream else self._ledger.stream()])

    def wait(self, stream: Stream | None = None) -> None:
        self._ledger.merge(stream.name if stream else self._ledger.stream(), self.known)

    def synchronize(self) -> None:
        self._ledger.now.waits["event"] += 1
        self._ledger.merge("host", self.known)

    def query(self) -> bool:
        return True


class _Entered:
    """`with torch.cuda.stream(...)`; as there, it can be entered again."""

    def __init__(self, ledger: Ledger, stream: Stream) -> None:
        self._ledger, self._stream, self._before = ledger, stream, []

    def __enter__(self) -> None:
        self._before.append(self._ledger.stream(self._stream.device))
        self._ledger.current[self._stream.device.index or 0] = self._stream.name

    def __exit__(self, *_: object) -> None:
        self._ledger.current[self._stream.device.index or 0] = self._before.pop()
