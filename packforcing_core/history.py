"""What a forward pass attends to in addition to its own tokens: the interface between model and cache."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


class History(Protocol):
    """The past, as a model pass sees it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the pass's own tokens over the past and themselves.

        `q`, `k` (normalised, not rotated) and `v` are [B, L, heads, head_dim] of those tokens; returns the same shape.
        """


@runtime_checkable
class Writer(History, Protocol):
    """The history of a commit. It can also store a layer's keys and values without computing attention."""

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores what `attend` would store. Enough for a commit's last layer, whose output is not used."""
