"""Short fingerprints of large things: a model by samples of every tensor, a prompt by all its bytes, a function by its
code and what it closes over.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAMPLES = 256
_DIGEST_BYTES = 16
_DEEPEST = 8
_MOST_OBJECTS = 20_000
_PLAIN = (str, int, float, complex, bytes, torch.dtype, torch.device, np.generic, type(None))


def fingerprint(content: Any, samples: int | None = SAMPLES, opaque: Callable[[Any], bool] = lambda _: False) -> str:
    """32 hexadecimal digits for nested dictionaries, lists, plain values, arrays, and tensors on any device.

    For a tensor: its shape, its dtype, and up to `samples` elements spread evenly over it (None: all). For a function:
    its code and what it closes over. For a module of torch: its class and plain attributes, without weights. For any
    other object: its class and attributes, a few levels deep. Sets, and objects that are `opaque`: the class alone.
    """
    return _Walk(samples, opaque).digest([content]).hex()


class _Walk:
    """A walk through nested content. An object that is met again, or inside itself, is not walked again."""

    def __init__(self, samples: int | None, opaque: Callable[[Any], bool]):
        self._samples, self._opaque = samples, opaque
        self._known: dict[int, bytes] = {}
        self._within: set[int] = set()

    def digest(self, values: Iterable[Any], depth: int = 0) -> bytes:
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for part in (part for value in values for part in self._parts(value, depth)):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()

    def _parts(self, content: Any, depth: int) -> Iterator[bytes]:
        if isinstance(content, Tensor):
            yield f"{tuple(content.shape)} {content.dtype}".encode()
            yield _sampled(content, self._samples)
        elif isinstance(content, np.ndarray) and not content.dtype.hasobject:
            yield f"{content.shape} {content.dtype}".encode()
            yield content.tobytes()
        elif isinstance(content, _PLAIN):
            yield repr(content).encode()
        elif id(content) in self._within:
            yield b"itself"
        else:
            self._within.add(id(content))
            if isinstance(content, dict):
                for key in sorted(content, key=_key):
                    yield _key(key).encode()
                    yield from self._parts(content[key], depth)
            elif isinstance(content, list | tuple):
                yield f"{len(content)} of".encode()
                for value in content:
                    yield from self._parts(value, depth)
            else:
                yield self._object(content, depth)
            self._within.discard(id(content))

    def _object(self, content: Any, depth: int) -> bytes:
        if id(content) not in self._known:
            walked = depth < _DEEPEST and len(self._known) < _MOST_OBJECTS and not self._opaque(content)
            inside = _inside(content) if walked else None
            self._known[id(content)] = self.digest([type(content).__qualname__, inside], depth + 1)
        return self._known[id(content)]


def _key(key: Any) -> str:
    return str(key) if isinstance(key, _PLAIN) else type(key).__qualname__


def _inside(content: Any) -> Any:
    """What an object consists of, as nested lists and dictionaries. None: it counts by its class alone."""
    if isinstance(content, MethodType):
        return [content.__func__, content.__self__]
    if isinstance(content, FunctionType):
        given = [content.__defaults__, content.__kwdefaults__, getattr(content, "__wrapped__", None)]
        return [content.__qualname__, content.__code__, [_held(cell) for cell in content.__closure__ or ()], given]
    if isinstance(content, CodeType):
        return [content.co_code, content.co_names, content.co_consts]
    if isinstance(content, partial):
        return [content.func, content.args, content.keywords]
    if isinstance(content, logging.Logger):
        return content.name
    if isinstance(content, ModuleType):
        return vars(content).get("__name__")
    if isinstance(content, type | BuiltinFunctionType):
        return content.__qualname__
    if isinstance(content, nn.Module):
        plain = {name: value for name, value in vars(content).items() if isinstance(value, _PLAIN)}
        return {name: value for name, value in plain.items() if name != "training" and not name.startswith("_")}
    if type(content).__module__.startswith("torch._"):  # Its state changes when it is used, as torch.compile's.
        return None
    slots = (name for kind in type(content).__mro__ for name in getattr(kind, "__slots__", ()))
    return {name: getattr(content, name) for name in slots if hasattr(content, name)} | getattr(content, "__dict__", {})


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Nothing was assigned to it yet.
        return "nothing"


def _sampled(tensor: Tensor, samples: int | None) -> bytes:
    elements = tensor.detach().reshape(-1, 1).view(torch.uint8)  # As bytes, because not every dtype can be indexed.
    if samples is not None and len(elements) > samples:
        index = torch.linspace(0, len(elements) - 1, samples, dtype=torch.float64).long()
        elements = elements[index.to(elements.device)]
    return elements.cpu().contiguous().numpy().tobytes()
