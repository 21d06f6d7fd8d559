"""Short fingerprints of large things: a model by samples of every tensor, a prompt by all its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 256
_DIGEST_BYTES = 16
_DEEPEST = 8


def fingerprint(content: Any, samples: int | None = SAMPLES) -> str:
    """32 hexadecimal digits for nested dictionaries, lists, plain values, and tensors on any device.

    For a tensor: its shape, its dtype, and up to `samples` elements spread evenly over it (None: all). For a function:
    its code and what it closes over. For any other object: its class and attributes, a few levels deep.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in _parts(content, samples):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(content: Any, samples: int | None, depth: int = 0) -> Iterable[bytes]:
    if isinstance(content, Tensor):
        yield f"{tuple(content.shape)} {content.dtype}".encode()
        yield _sampled(content, samples)
    elif isinstance(content, dict):
        for key in sorted(content, key=str):
            yield str(key).encode()
            yield from _parts(content[key], samples, depth)
    elif isinstance(content, list | tuple):
        yield f"{len(content)} of".encode()
        for value in content:
            yield from _parts(value, samples, depth)
    elif isinstance(content, set | frozenset):
        yield from _parts(sorted(map(repr, content)), samples, depth)
    elif content is None or isinstance(content, str | int | float | bytes | torch.dtype | torch.device):
        yield repr(content).encode()
    else:
        yield type(content).__qualname__.encode()
        if depth < _DEEPEST:
            yield from _parts(_inside(content), samples, depth + 1)


def _inside(content: Any) -> Any:
    """What an object consists of, as nested lists and dictionaries."""
    if isinstance(content, MethodType):
        # Weights of a module are fingerprinted as a model's, in which other nodes' patches come and go.
        bound = content.__self__
        return [content.__func__, type(bound).__qualname__ if isinstance(bound, nn.Module) else bound]
    if isinstance(content, FunctionType):
        cells = [cell.cell_contents for cell in content.__closure__ or ()]
        given = [content.__defaults__, content.__kwdefaults__, getattr(content, "__wrapped__", None)]
        return [content.__qualname__, content.__code__, cells, given]
    if isinstance(content, CodeType):
        return [content.co_code, content.co_names, content.co_consts]
    if isinstance(content, partial):
        return [content.func, content.args, content.keywords]
    if isinstance(content, type) or not hasattr(content, "__dict__"):
        return getattr(content, "__qualname__", None)
    # torch's own machinery, such as that of torch.compile, changes when it is used.
    return None if type(content).__module__.startswith("torch._") else vars(content)


def _sampled(tensor: Tensor, samples: int | None) -> bytes:
    elements = tensor.detach().reshape(-1, 1).view(torch.uint8)  # As bytes, because not every dtype can be indexed.
    if samples is not None and len(elements) > samples:
        index = torch.linspace(0, len(elements) - 1, samples, dtype=torch.float64).long()
        elements = elements[index.to(elements.device)]
    return elements.cpu().contiguous().numpy().tobytes()
