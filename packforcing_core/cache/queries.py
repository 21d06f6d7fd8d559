"""A layer's queries in one pass, rotated once, and their sums for selection from a bank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..rope import GridRope, Rotation, rotate


class Queries:
    """Unrotated queries `plain` [B, L, heads, head_dim] of whole latent frames at temporal `positions`; `rotation`
    rotates them.
    """

    def __init__(self, plain: Tensor, rope: GridRope, positions: Sequence[float], rotation: Rotation):
        self.plain = plain
        self._rope, self._positions, self._rotation = rope, positions, rotation

    @cached_property
    def turned(self) -> Tensor:
        """The rotated queries, for attention."""
        return rotate(self.plain, self._rotation)

    @cached_property
    def frame_sums(self) -> Tensor:
        """The sum of each frame's queries, rotated by height and width only: [B, frames, heads, head_dim] float32.

        All tokens of a frame have the same rotation in time, so the rotated queries are summed and the sum is rotated
        back.
        """
        frames = len(self._positions)
        sums = self.turned.unflatten(1, (frames, -1)).sum(dim=2, dtype=torch.float32)
        return rotate(sums, self._rope.time([-position for position in self._positions]))
