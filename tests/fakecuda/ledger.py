"""What a GPU would be asked to do: the counts that `fake_cuda` keeps, by part of a block.

Order between streams is kept with vector clocks: every launch ticks its stream's clock, a wait merges another stream's
into it, and a use that another stream's earlier use does not precede is a race.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAIN, HOST = "main", "host"
REMEMBERED_USES = 32
"""Of a storage, by each of reads and writes: older ones were waited for long ago."""


@dataclass
class Part:
    """Counts of one part of a block. `moved` are bytes read and written on the device, by operation."""

    launches: int = 0
    moved: Counter[str] = field(default_factory=Counter)
    launched: Counter[str] = field(default_factory=Counter)
    sites: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    to_host: int = 0
    to_device: int = 0

    @property
    def moved_bytes(self) -> int:
        return sum(self.moved.values())


@dataclass
class Use:
    """One access: rows `first` to `end` (in elements of the storage) at `tick` of `stream`."""

    stream: str
    tick: int
    first: int
    end: int


@dataclass
class Allocation:
    """A storage: where it lives, which stream made it, who uses it."""

    nbytes: int
    on_device: bool
    stream: str
    pinned: bool = False
    reads: list[Use] = field(default_factory=list)
    writes: list[Use] = field(default_factory=list)
    last_tick: dict[str, int] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)


class Ledger:
    """All counts of a run. `part("steps")` names what the following operations belong to."""

    def __init__(self) -> None:
        self.clocks: dict[str, Counter[str]] = {MAIN: Counter(), HOST: Counter()}
        self.current: dict[int, str] = {}
        self.parts: dict[str, Part] = {}
        self.races: Counter[str] = Counter()
        self.mixes: Counter[str] = Counter()
        self.live = self.peak = self.host_live = 0
        self._name = "setup"
        self._storages: weakref.WeakKeyDictionary[torch.UntypedStorage, Allocation] = weakref.WeakKeyDictionary()

    def stream(self, device: torch.device | int | None = None) -> str:
        """The current stream of a device."""
        index = (device.index or 0) if isinstance(device, torch.device) else (device or 0)
        if index not in self.current:
            self.current[index] = MAIN if index == 0 else f"{MAIN} of {index}"
            self.clocks.setdefault(self.current[index], Counter())
        return self.current[index]

    @property
    def now(self) -> Part:
        return self.parts.setdefault(self._name, Part())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    def forget_counts(self) -> None:
        """Begins to count anew; clocks, memory, races and mixes stay."""
        self.parts = {}

    def total(self) -> Part:
        whole = Part()
        for part in self.parts.values():
            whole.launches += part.launches
            whole.to_host += part.to_host
            whole.to_device += part.to_device
            for mine, theirs in ((whole.moved, part.moved), (whole.waits, part.waits), (whole.sites, part.sites)):
                mine.update(theirs)
        return whole

    def allocation(self, tensor: Tensor) -> Allocation:
        storage = tensor.untyped_storage()
        if storage not in self._storages:
            self._storages[storage] = self._allocate(storage, tensor.device)
        return self._storages[storage]

    def _allocate(self, storage: torch.UntypedStorage, device: torch.device) -> Allocation:
        on_device = device.type == "cuda"
        made = Allocation(storage.nbytes(), on_device, self.stream(device))
        weakref.finalize(storage, self._free, made)
        if on_device:
            self.live += made.nbytes
            self.peak = max(self.peak, self.live)
        else:
            self.host_live += made.nbytes
        return made

    def _free(self, allocation: Allocation) -> None:
        if not allocation.on_device:
            self.host_live -= allocation.nbytes
            return
        self.live -= allocation.nbytes
        for stream, tick in allocation.last_tick.items():
            unknown = self.clocks[allocation.stream][stream] < tick and self.clocks[HOST][stream] < tick
            if stream != allocation.stream and stream not in allocation.recorded and unknown:
                self.races[f"memory of {allocation.stream} freed while {stream} uses it, no record_stream"] += 1

    def merge(self, stream: str, known: Counter[str]) -> None:
        """What comes on `stream` (or on the host) from here on comes after `known`."""
        for name, tick in known.items():
            self.clocks[stream][name] = max(self.clocks[stream][name], tick)

    def host_waits(self, why: str, stream: str | None = None) -> None:
        """The host waits until `stream` (the current one) is done."""
        self.now.waits[f"{why} @ {site()}"] += 1
        self.merge(HOST, self.clocks[stream or self.stream()])

    def launch(self, name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        """A kernel on the device's current stream, which reads and writes those tensors. A copy from device to device
        runs on the source's, after what the target's has, and what comes there waits for it.
        """
        devices = [self.stream(t.device) for t in (*reads, *writes) if t.device.type == "cuda"]
        stream, target = devices[0], devices[-1]
        self.merge(stream, self.clocks[HOST])  # The host's order is the order of launches.
        if target != stream:
            self.merge(stream, self.clocks[target])
        self.clocks[stream][stream] += 1
        for tensor in reads:
            self.use(tensor, stream, name, writes=False)
        for tensor in writes:
            self.use(tensor, stream, name, writes=True)
        if target != stream:
            self.merge(target, self.clocks[stream])
        part, where = self.now, site()
        moved = sum(extent(t) for t in (*reads, *writes) if t.device.type == "cuda")
        part.launches += 1
        part.launched[name] += 1
        part.moved[name] += moved
        part.sites[f"{name} @ {where}"] += moved

    def use(self, tensor: Tensor, stream: str, name: str, *, writes: bool) -> None:
        """Notes an access and what it races with."""
        allocation = self.allocation(tensor)
        first = tensor.storage_offset()
        end = first + 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        known = self.clocks[stream]
        earlier = [*allocation.writes, *(allocation.reads if writes else ())]
        for use in earlier:
            if use.stream != stream and known[use.stream] < use.tick and first < use.end and use.first < end:
                kind = "writes" if writes else "reads"
                self.races[f"{name} on {stream} {kind} what {use.stream} still uses @ {site()}"] += 1
        if stream == HOST:
            return
        tick = self.clocks[stream][stream]
        allocation.last_tick[stream] = tick
        uses = allocation.writes if writes else allocation.reads
        uses.append(Use(stream, tick, first, end))
        del uses[:-REMEMBERED_USES]


def extent(tensor: Tensor) -> int:
    """Bytes of the elements that a tensor has in memory: expanded axes count once."""
    count = 1
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if step else min(size, 1)
    return count * tensor.element_size()


def site() -> str:
    """The nearest line of the project's own that called, the kernels' wrappers apart."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename.replace("\\", "/")
        if "packforcing_core/" in name and "/kernels/" not in name:
            return f"{name.split('packforcing_core/')[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
