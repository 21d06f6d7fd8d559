"""What devices do not support, and how they report that they are out of memory."""

from __future__ import annotations

from functools import lru_cache

import torch

from .errors import PackForcingError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""By the names that options use."""

# Out-of-memory messages of torch and its libraries where they have no exception class: CUDA, cuBLAS, cuDNN, HIP, MPS,
# XPU, DirectML, and CPU allocators. In lower case.
_FULL = (
    "out of memory",
    "outofmemory",
    "_out_of_device_memory",
    "_out_of_host_memory",
    "_out_of_resources",
    "_status_alloc_failed",
    "allocation_failed",
    "statusallocfailed",
    "rocblas_status_memory_error",
    "cudaerrormemoryallocation",
    "valid cudnn algorithm",  # cuDNN found no algorithm that fits in the free memory.
    "not enough gpu video memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)


def usable_device(name: str, option: str = "--device") -> torch.device:
    """The device that `option` names, with its index (cuda is cuda:0), as its tensors name it. Raises PackForcingError
    if it is missing or fails.
    """
    try:
        tried = torch.zeros(1, device=torch.device(name))
        tried.item()
    except (RuntimeError, AssertionError) as error:
        raise PackForcingError(f"Device {name!r} cannot be used: {error}. Try {option} cpu.") from error
    return tried.device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the system is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _FULL)


def has_complex(device: torch.device | str) -> bool:
    """Whether `device` supports complex numbers (older MPS and DirectML do not)."""
    return _has_complex(str(device))


@lru_cache(maxsize=16)
def _has_complex(device: str) -> bool:
    try:
        turn = torch.view_as_complex(torch.zeros(1, 2, device=device))
        torch.view_as_real(turn * turn)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


def widest_float(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on a device without float64 (MPS, some XPUs, DirectML)."""
    return _widest_float(str(device))


@lru_cache(maxsize=16)
def _widest_float(device: str) -> torch.dtype:
    try:
        torch.zeros(1, device=device, dtype=torch.float64)
    except (TypeError, RuntimeError, NotImplementedError):
        return torch.float32
    return torch.float64
