"""The `ops` interface: the module classes that the networks are built from.

A host that casts, offloads, dequantises or patches weights (ComfyUI) supplies its own classes with the same names. The
transformer and the VAE are built only from these classes and never read a weight directly, so the host's handling
always applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn


class Ops(Protocol):
    """Module classes with the signatures of `torch.nn`, and a cast for bare parameters.

    They are declared as properties because they are only read: a class with these attributes fits, and a module too.
    """

    # The names are torch's.
    @property
    def Linear(self) -> Callable[..., nn.Module]: ...  # noqa: N802
    @property
    def Conv2d(self) -> Callable[..., nn.Module]: ...  # noqa: N802
    @property
    def Conv3d(self) -> Callable[..., nn.Module]: ...  # noqa: N802
    @property
    def LayerNorm(self) -> Callable[..., nn.Module]: ...  # noqa: N802
    @property
    def RMSNorm(self) -> Callable[..., nn.Module]: ...  # noqa: N802

    def cast(self, parameter: Tensor, like: Tensor, /) -> Tensor:
        """`parameter` on the device and in the dtype of `like`."""
        ...


class TorchOps:
    """Plain `torch.nn` modules."""

    Linear = nn.Linear
    Conv2d = nn.Conv2d
    Conv3d = nn.Conv3d
    LayerNorm = nn.LayerNorm
    RMSNorm = nn.RMSNorm

    @staticmethod
    def cast(parameter: Tensor, like: Tensor) -> Tensor:
        return parameter.to(device=like.device, dtype=like.dtype)


Built = TypeVar("Built")


def build_on_meta(build: Callable[[], Built]) -> Built:
    """`build()` with every tensor on the meta device: shapes and names only, no memory."""
    with torch.device("meta"):
        return build()
