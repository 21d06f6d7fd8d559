"""How a policy uses the stored past of a layer: what a block selects from it, and how a commit changes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ..errors import PackForcingError
from .layer_kv import LayerKV
from .packed import PackedKV
from .partitions import BlockWindow, Placement
from .queries import Queries

KV = LayerKV | PackedKV
Past = Sequence[Placement]


class Chooser(Protocol):
    """What lets each layer choose among the past: a `Rule`, or the bank of compressed blocks (`mid.MidMemory`)."""

    def choose(self, layer: int, kv: KV, window: BlockWindow, queries: Queries, block: int) -> Any:
        """As `Rule.choose`."""

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> Sequence[int] | Tensor:
        """As `Rule.repeated`."""

    def show(self, layer: int, kv: KV, window: BlockWindow, choice: Any) -> None:
        """As `Rule.show`."""


class Rule:
    """A policy's hand on the past; this one does nothing.

    A layer `choose`s once a block, from its queries; views `show` what it chose, and a commit makes it the stored past
    (`drop`) before the block is `store`d. What a rule keeps besides the layers' slots counts in `nbytes`.
    """

    @property
    def nbytes(self) -> int:
        return 0

    def choose(self, layer: int, kv: KV, window: BlockWindow, queries: Queries, block: int) -> Any:
        """`layer`'s choice for a window that `chooses`, from its `queries`: token or block indices."""
        raise NotImplementedError

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> Sequence[int] | Tensor:
        """A choice of an earlier run, to be made again; PackForcingError where it does not fit."""
        raise NotImplementedError

    def show(self, layer: int, kv: KV, window: BlockWindow, choice: Any) -> None:
        """Makes what `layer` attends to what `choice` says."""

    def drop(self, layer: int, kv: KV, window: BlockWindow, choice: Any) -> None:
        """Makes the stored past of `layer` what `show` shows."""

    def store(self, layer: int, kv: KV, first: int, following: Past, timeless: Tensor, v: Tensor) -> None:
        """A block that begins at counted frame `first` is about to take its slots, after which the past lies as
        `following` says: keys `timeless`, rotated by height and width alone, and values [B, tokens, heads, head_dim].
        """

    def stored(self, layer: int, kv: KV, first: int, following: Past) -> None:
        """The block that begins at counted frame `first` has taken its slots."""

    def restart(self) -> None:
        """The past begins again, and its blocks will be committed again."""

    def forget(self) -> None:
        """What was gathered of frames that are out of view is gone."""


def counts_current(policy: str, recent_frames: int, frames_per_block: int) -> None:
    """PackForcingError for recent frames that should hold the current block and do not."""
    if recent_frames < frames_per_block:
        raise PackForcingError(
            f"Policy '{policy}': recent_frames is {recent_frames}, but it counts the current block; "
            f"expected at least {frames_per_block}."
        )
