"""Wan's three-axis rotary position embedding.

A head of d channels gives d - 4(d//6) to time, 2(d//6) to height and 2(d//6) to width, as interleaved pairs; pair j
of an axis with c channels turns by position / theta^(2j/c). Angles are taken in float64 and the rotation in float32:
in bfloat16 temporal positions above 256 would collide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


class Rotation(NamedTuple):
    """Cosines and sines, each [L, 1, pairs] float32, broadcast over batch and heads."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angles: Tensor, device: torch.device | str) -> Rotation:
        """The rotation by `angles` [L, pairs] (float64)."""
        return cls(*(f(angles).float().unsqueeze(1).to(device) for f in (torch.cos, torch.sin)))


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that carry time, height and width."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def axis_angles(positions: Tensor, channels: int) -> Tensor:
    """Angles [L, channels / 2] in float64 for positions [L] (fractions are allowed)."""
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    return torch.outer(positions.double(), THETA**-exponents)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the leading channel pairs of `x` [B, L, heads, head_dim], as many as `rotation` has; dtype and shape are
    kept.

    Time comes first in a head, so a rotation by time alone has fewer pairs and leaves the spatial channels as they are.
    """
    cos, sin = rotation
    channels = 2 * cos.shape[-1]
    even, odd = x[..., :channels].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
    return turned if channels == x.shape[-1] else torch.cat((turned, x[..., channels:]), dim=-1)


class GridRope:
    """Rotations for latent frames of one token grid, made on `device`.

    Spatial angles never change, so a block's table costs the cosines of a few temporal positions and an expansion.
    `rows` and `columns` are the coordinates of a grid that is not the full one (fractions are allowed).
    """

    def __init__(
        self,
        head_dim: int,
        grid: tuple[int, int],
        device: torch.device | str = "cpu",
        *,
        rows: Sequence[float] | None = None,
        columns: Sequence[float] | None = None,
    ):
        self.head_dim = head_dim
        self.grid = grid
        self.device = device
        rows = _coordinates(range(grid[0]) if rows is None else rows)
        columns = _coordinates(range(grid[1]) if columns is None else columns)
        self._time_channels, row_channels, column_channels = axis_channels(head_dim)
        row_angles = axis_angles(rows, row_channels).repeat_interleave(len(columns), dim=0)
        column_angles = axis_angles(columns, column_channels).repeat(len(rows), 1)
        self._spatial = Rotation.of(torch.cat((row_angles, column_angles), dim=1), device)

    def frames(self, positions: Sequence[float]) -> Rotation:
        """The rotation of whole latent frames at temporal `positions`: [len(positions) x tokens_per_frame, 1,
        pairs].
        """
        time = self.time(positions)
        frames, tokens = len(positions), self._spatial.cos.shape[0]
        return Rotation(
            *(
                torch.cat((t.expand(-1, tokens, -1), s.squeeze(1).expand(frames, -1, -1)), dim=-1)
                .flatten(0, 1)
                .unsqueeze(1)
                for t, s in zip(time, self._spatial, strict=True)
            )
        )

    def spatial(self, frames: int) -> Rotation:
        """The rotation of `frames` latent frames by height and width alone (the angle of time is zero)."""
        return self.frames([0.0] * frames)

    def time(self, positions: Sequence[float]) -> Rotation:
        """The rotation by time alone, one row per position: [len(positions), 1, pairs of time]."""
        return Rotation.of(axis_angles(_coordinates(positions), self._time_channels), self.device)

    def frame_times(self, positions: Sequence[float]) -> Rotation:
        """`time` for every token of whole latent frames: [len(positions) x tokens_per_frame, 1, pairs of time]."""
        tokens = self._spatial.cos.shape[0]
        return Rotation(*(table.repeat_interleave(tokens, dim=0) for table in self.time(positions)))


def _coordinates(positions: Sequence[float]) -> Tensor:
    return torch.tensor(list(positions), dtype=torch.float64)
