"""Sends one event per block to the panel of the KV Cache node.

The event "packforcing.block" goes through `tell.py`: `{"node": id of the KV Cache node, "block": the finished block,
"blocks", "seconds", "cache_bytes", "selected": {block: share of the layers}, "svg": a drawing, with words in braces}`.
The first event shows the last block of those that are finished already; where there is none, `block` is null.
"""

from __future__ import annotations

import time
from typing import Any

from ..packforcing_core.drawing.past import Moment, draw_window, selected_shares
from ..packforcing_core.sampler.denoising import BlockDone
from .stream import LatentStream
from .tell import Line

EVENT = "packforcing.block"


class BlockWatch:
    """Sends the events of a stream's blocks."""

    def __init__(self, stream: LatentStream):
        self._stream, self._plan = stream, stream.plan()
        self._line = Line.of(stream.cache_node) if stream.cache_node is not None else None
        self._since = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        folder = self._stream.folder
        newest = min([*folder.missing_blocks(), folder.manifest.blocks]) - 1
        if newest < 0 or self._line is None or self._line.client is None:
            self._send(None, 0.0, None)
        else:
            self._send(newest, 0.0, self._selected(folder.blocks.load(newest)))

    def done(self, event: BlockDone) -> None:
        seconds = round(time.monotonic() - self._since, 4)
        self._since = time.monotonic()
        self._send(event.block, seconds, self._selected(event))

    def _selected(self, event: BlockDone) -> dict[int, float] | None:
        """Share of layers that selected each block; None for policies that select no blocks (Deep Forcing selects
        tokens).
        """
        return selected_shares(event.seen) if self._stream.recipe.partitions.bank else None

    def _send(self, block: int | None, seconds: float, selected: dict[int, float] | None) -> None:
        if self._line is None or self._line.client is None:
            return
        recipe = self._stream.recipe
        data: dict[str, Any] = {
            "block": block,
            "blocks": recipe.geometry.blocks,
            "seconds": seconds,
            "cache_bytes": self._plan.cache_bytes,
            "selected": selected or {},
            "svg": draw_window(recipe, self._plan, Moment(block or 0, selected)),
        }
        self._line.tell(EVENT, **data)
