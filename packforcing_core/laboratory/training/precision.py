"""The precision that training computes in."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Products in `precision`, weights and sums in float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)
