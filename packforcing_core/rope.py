"""Wan's three-axis rotary position embedding.

A head of d channels has d - 4(d//6) for time, 2(d//6) for height and 2(d//6) for width, in interleaved pairs. Pair j of
an axis with c channels is rotated by position / theta^(2j/c). Angles are computed in float64 and the rotation in
float32: in bfloat16, temporal positions above 256 would collide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import has_complex
from .kernels import fast, plain
from .queued import to_device

THETA = 10000.0

Rotation = Tensor
"""cos + i sin of the angle of each token and channel pair: [L, 1, pairs] complex64, broadcast over batch and heads.

[L, 1, pairs, 2] float32 on a device without complex numbers.
"""


KEPT_TIMES = 256
"""How many temporal positions a GridRope caches, 0.5 KB each; a window with its own clock needs few."""


def rotation_by(angles: Tensor, device: torch.device | str) -> Rotation:
    """The rotation by `angles` [L, pairs] (float64, on the CPU)."""
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64).unsqueeze(1)
    return to_device(turns if has_complex(device) else torch.view_as_real(turns), device)


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that carry time, height and width."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def axis_angles(positions: Tensor, channels: int) -> Tensor:
    """Angles [L, channels / 2] in float64 for positions [L] (fractions are allowed)."""
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    return torch.outer(positions.double(), THETA**-exponents)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates the channel pairs of `x` [B, L, heads, head_dim]; dtype and shape are kept."""
    if fast.rotates(x):
        turned = torch.empty_like(x)
        fast.rotate_into(x, rotation, turned)
        return turned
    return plain.rotated(x, rotation).to(x.dtype)


def rotate_into(target: Tensor, x: Tensor, rotation: Rotation) -> None:
    """Writes `rotate(x, rotation)` to `target`, a view of a buffer with the same shape and dtype."""
    if fast.rotates(x) and fast.rotates(target):
        fast.rotate_into(x, rotation, target)
    else:
        target.copy_(plain.rotated(x, rotation))


class GridRope:
    """Rotations for latent frames of one token grid, made on `device`.

    Spatial angles never change, so a block's table only needs the cosines of a few temporal positions and an expansion.
    `rows` and `columns` are the coordinates of a grid other than the full one (fractions are allowed).
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
        heights = _coordinates(range(grid[0]) if rows is None else rows)
        widths = _coordinates(range(grid[1]) if columns is None else columns)
        self._time_channels, row_channels, column_channels = axis_channels(head_dim)
        row_angles = axis_angles(heights, row_channels).repeat_interleave(len(widths), dim=0)
        column_angles = axis_angles(widths, column_channels).repeat(len(heights), 1)
        angles = torch.cat((row_angles, column_angles), dim=1)
        self._spatial = rotation_by(F.pad(angles, (self._time_channels // 2, 0)), device)
        self._times: OrderedDict[tuple[float, ...], Rotation] = OrderedDict()

    def frames(self, positions: Sequence[float]) -> Rotation:
        """The rotation of whole latent frames at temporal `positions`: [len(positions) x tokens_per_frame, 1,
        pairs].
        """
        # Each factor is 1 where the other rotates, so the product keeps the bits of both.
        return plain.product(self.time(positions), self._spatial.squeeze(1)).flatten(0, 1).unsqueeze(1)

    def spatial(self, frames: int) -> Rotation:
        """The rotation of `frames` latent frames by height and width only (temporal angles are zero)."""
        return self.frames([0.0] * frames)

    def time(self, positions: Sequence[float]) -> Rotation:
        """The rotation by time only (spatial angles are zero), one row per position: [len(positions), 1, pairs]."""
        key = tuple(positions)
        if key not in self._times:
            with torch.inference_mode(False):  # The cached table outlives this call and must work in any mode.
                angles = axis_angles(_coordinates(key), self._time_channels)
                padded = F.pad(angles, (0, (self.head_dim - self._time_channels) // 2))
                self._times[key] = rotation_by(padded, self.device)
            if len(self._times) > KEPT_TIMES:
                self._times.popitem(last=False)
        self._times.move_to_end(key)
        return self._times[key]

    def frame_times(self, positions: Sequence[float]) -> Rotation:
        """`time` for every token of whole latent frames: [len(positions) x tokens_per_frame, 1, pairs]."""
        return self.time(positions).repeat_interleave(len(self._spatial), dim=0)


def _coordinates(positions: Sequence[float]) -> Tensor:
    return torch.tensor(list(positions), dtype=torch.float64)
