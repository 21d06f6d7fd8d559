"""How a policy uses the stored past of a layer: what a block selects from it, and how a commit changes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import PackForcingError
from .layer_kv import LayerKV
from .packed import PackedKV
from .partitions import BlockWindow, Placement
from .queries import Queries

KV = LayerKV | PackedKV
Past = Sequence[Placement]


class Rule:
    """How a policy selects from and changes the past; this base class does neither.

    A layer calls `choose` once per block, with its queries. Views call `show` for the selection. A commit first calls
    `drop`, which makes it the stored past, then `store` for the block. `nbytes` counts what a rule keeps outside the
    layers' slots.
    """

    @property
    def nbytes(self) -> int:
        return 0

    def choose(
        self, layer: int, kv: KV, window: BlockWindow, queries: Queries, block: int, writes: bool = False
    ) -> Any:
        """The selection of `layer`, token or block indices, from its `queries`; called for a window that `chooses`."""
        raise NotImplementedError

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> Sequence[int] | Tensor:
        """Repeats a selection of an earlier run. Raises PackForcingError if it does not fit."""
        raise NotImplementedError

    def show(self, layer: int, kv: KV, window: BlockWindow, choice: Any) -> None:
        """Makes `layer` attend to the selection `choice`."""

    def drop(self, layer: int, kv: KV, window: BlockWindow, choice: Any) -> None:
        """Makes the stored past of `layer` equal to what `show` shows."""

    def store(self, layer: int, kv: KV, first: int, following: Past, timeless: Tensor, v: Tensor) -> None:
        """Called before a block that begins at counted frame `first` takes its slots; `following` is the past after
        that. Keys `timeless` (rotated by height and width only) and values are [B, tokens, heads, head_dim].
        """

    def stored(self, layer: int, kv: KV, first: int, following: Past) -> None:
        """Called after the block that begins at counted frame `first` has taken its slots."""

    def restart(self, frames: int) -> None:
        """Called when the past starts over; so many `frames` of it will be committed again, counted from 0."""

    def forget(self) -> None:
        """What was gathered of frames that are out of view is gone."""


def counts_current(policy: str, recent_frames: int, frames_per_block: int) -> None:
    """Raises PackForcingError if `recent_frames` is too small to include the current block."""
    if recent_frames < frames_per_block:
        raise PackForcingError(
            f"Policy '{policy}': recent_frames is {recent_frames}, but it counts the current block; "
            f"expected at least {frames_per_block}."
        )
