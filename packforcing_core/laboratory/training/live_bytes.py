"""Counts the bytes of all live tensors created by operations, on any device, including "meta"."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RESIZING = ("aten::resize_", "aten::set_")


class LiveBytes(TorchDispatchMode):
    """A dispatch mode that counts bytes while it is active: `live` now, and their `peak`. The tensors `before` and
    their views are not counted.

    On the meta device an operation takes PyTorch about a millisecond, since shapes are computed in Python. So the
    shapes of results are cached by operation and arguments.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.counted: set[int] = set()
        self.known: dict[Hashable, list[tuple[torch.Size, tuple[int, ...], torch.dtype]]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = self.made(function, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def made(self, function: Any, args: tuple, kwargs: dict) -> Any:
        """Returns the result of an operation; on the meta device from cached shapes where possible."""
        schema = function._schema
        first = args[0] if args and not isinstance(args[0], list | tuple) else next(iter(args[0] if args else ()), None)
        if not (isinstance(first, Tensor) and first.is_meta) or function.is_view:
            return function(*args, **kwargs)
        if schema.is_mutable:
            in_place = schema.name.endswith("_") and schema.name not in RESIZING and first is args[0]
            return first if in_place else function(*args, **kwargs)
        try:
            key = function, _told(args), _told(tuple(kwargs.items()))
            found = self.known.get(key)
        except TypeError:  # something that cannot be a key
            return function(*args, **kwargs)
        if found is not None:
            made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in found]
            return made[0] if len(made) == 1 else tuple(made)
        result = function(*args, **kwargs)
        parts = result if isinstance(result, tuple) and len(result) > 1 else (result,)
        if all(isinstance(part, Tensor) and part.is_meta and part.storage_offset() == 0 for part in parts):
            self.known[key] = [(part.shape, part.stride(), part.dtype) for part in parts]
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.counted or key in self.before:
            return
        self.counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.live -= size


def _told(given: Any) -> Hashable:
    """Returns a cache key with everything in an operation's arguments that determines the shapes of its result."""
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.device
    if isinstance(given, list | tuple):
        return tuple(map(_told, given))
    return type(given), given
