"""The precision that training computes in."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Products in `precision`, weights and sums in float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def training_precision(device: torch.device) -> torch.dtype:
    """What products are computed in on `device`: float32 on a CPU without bf16 units, which only imitates bfloat16 and
    is many times slower at it; else bfloat16. It goes by what the machine has and not by the clock, so that a training
    that is resumed computes as before.
    """
    return torch.float32 if device.type == "cpu" and not has_bf16_units() else torch.bfloat16


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; False where PyTorch is too old to tell."""
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(told.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
