"""The precision of training."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Returns an autocast context: matrix products in `precision`, weights and sums in float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def training_precision(device: torch.device) -> torch.dtype:
    """Returns the dtype of matrix products on `device`: float32 on a CPU without bf16 units, which emulates bfloat16
    and is many times slower at it; otherwise bfloat16. The choice depends on the hardware and not on a timing, so that
    a resumed training computes the same.
    """
    return torch.float32 if device.type == "cpu" and not has_bf16_units() else torch.bfloat16


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; False if this PyTorch is too old to report it."""
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(told.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
