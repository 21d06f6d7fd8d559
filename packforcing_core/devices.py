"""What devices do not support, and how they report that their memory is full."""

from __future__ import annotations

from functools import lru_cache

import torch

from .errors import PackForcingError

# How torch and the libraries under it say so where they raise no class of its own: CUDA, cuBLAS, cuDNN, HIP, MPS, XPU,
# DirectML, and the host's allocators. In lower case.
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
    "valid cudnn algorithm",  # cuDNN found none that fits into what is left
    "not enough gpu video memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)


def usable_device(name: str, option: str = "--device") -> torch.device:
    """The device that `option` names, tried with one element; PackForcingError where there is none or it fails."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise PackForcingError(f"Device {name!r} cannot be used: {error}. Try {option} cpu.") from error
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on a device or in the host, in whatever words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _FULL)


def has_complex(device: torch.device | str) -> bool:
    """Whether `device` multiplies complex numbers (older MPS and DirectML have none)."""
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
    """float64, or float32 on a device that has none (MPS, some XPUs, DirectML)."""
    return _widest_float(str(device))


@lru_cache(maxsize=16)
def _widest_float(device: str) -> torch.dtype:
    try:
        torch.zeros(1, device=device, dtype=torch.float64)
    except (TypeError, RuntimeError, NotImplementedError):
        return torch.float32
    return torch.float64
