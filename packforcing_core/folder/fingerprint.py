"""Short fingerprints of large things: a model by samples of every tensor, a prompt by all its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SAMPLES = 256
_DIGEST_BYTES = 16
_DEEPEST = 8


def fingerprint(content: Any, samples: int | None = SAMPLES) -> str:
    """32 hexadecimal digits for nested dictionaries, lists, plain values, and tensors on any device.

    For a tensor: its shape, its dtype, and up to `samples` elements spread evenly over it (None: all). For any other
    object: its class and attributes, a few levels deep.
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
            yield from _parts(content[key], samples, depth + 1)
    elif isinstance(content, list | tuple):
        yield f"{len(content)} of".encode()
        for value in content:
            yield from _parts(value, samples, depth + 1)
    elif content is None or isinstance(content, str | int | float | bool | bytes):
        yield repr(content).encode()
    else:
        yield type(content).__qualname__.encode()
        if depth < _DEEPEST and hasattr(content, "__dict__"):
            yield from _parts(vars(content), samples, depth + 1)


def _sampled(tensor: Tensor, samples: int | None) -> bytes:
    elements = tensor.detach().reshape(-1, 1).view(torch.uint8)  # As bytes, because not every dtype can be indexed.
    if samples is not None and len(elements) > samples:
        index = torch.linspace(0, len(elements) - 1, samples, dtype=torch.float64).long()
        elements = elements[index.to(elements.device)]
    return elements.cpu().contiguous().numpy().tobytes()
