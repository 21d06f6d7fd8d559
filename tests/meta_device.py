"""Real code on the meta device, whose tensors have sizes and no contents: what is read from it is made up.

    with MetaDevice() as device:
        ...                           # networks and tensors on torch.device("meta")
        with device.measured("step"):
            ...
    device.peaks["step"]

Numbers that the host reads are 0.5, copies to the host are zeros. Only tensors of the meta device are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from packforcing_core.laboratory.training.live_bytes import LiveBytes

READ = 0.5


class MetaDevice(LiveBytes):
    """`peaks` are bytes by what they were measured for."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}

    def made(self, function, args, kwargs):
        name, first = function._schema.name, args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if name in ("aten::_local_scalar_dense", "aten::is_nonzero"):
                return _number(name, first.dtype)
            if name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu"):
                return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        return super().made(function, args, kwargs)

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta":
            super().count(storage)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """What is the most while it is entered, of all times that it is."""
        self.peak = self.live
        yield
        self.peaks[name] = max(self.peaks.get(name, 0), self.peak)


def _number(name: str, dtype: torch.dtype) -> float | int | bool:
    if name == "aten::is_nonzero" or dtype == torch.bool:
        return True
    return READ if dtype.is_floating_point else 1
