"""What a forward pass of the transformer attends to apart from its own tokens: the contract between model and cache."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


class History(Protocol):
    """What attention sees of the past, as a model pass holds it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the pass's own tokens over the past and themselves.

        `q`, `k` (normalised, not rotated) and `v` are [B, L, heads, head_dim] of those tokens; returns the same shape.
        """


@runtime_checkable
class Writer(History, Protocol):
    """The history of a commit, which can also take what a layer keeps without giving its attention."""

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores what `attend` would store: all that a commit needs of its last layer, whose output nobody reads."""
