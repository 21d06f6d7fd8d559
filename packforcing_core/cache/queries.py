"""A layer's queries of one pass, turned once, and the sums that choosing in a bank takes from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..rope import GridRope, Rotation, rotate


class Queries:
    """Queries `plain` [B, L, heads, head_dim], not rotated, of whole latent frames at temporal `positions`, whose
    `rotation` turns them.
    """

    def __init__(self, plain: Tensor, rope: GridRope, positions: Sequence[float], rotation: Rotation):
        self.plain = plain
        self._rope, self._positions, self._rotation = rope, positions, rotation

    @cached_property
    def turned(self) -> Tensor:
        """As attention takes them."""
        return rotate(self.plain, self._rotation)

    @cached_property
    def frame_sums(self) -> Tensor:
        """The sum of each frame's queries, rotated by height and width alone: [B, frames, heads, head_dim] float32.

        All tokens of a frame turn alike in time, so the sum of the turned ones is turned back.
        """
        frames = len(self._positions)
        sums = self.turned.unflatten(1, (frames, -1)).sum(dim=2, dtype=torch.float32)
        return rotate(sums, self._rope.time([-position for position in self._positions]))
