"""Keys and values in 8 bits: symmetric, one float32 scale per token and head.

A row x of head_dim numbers is kept as round(x / scale) with scale = the largest magnitude in x / 127, so that each
number comes back within half a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_LIMIT = 127
SCALE_BYTES = 4

Rows = slice | Tensor
"""Which token rows: a range, or their indices."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 like `x` [..., head_dim], and scales float32 [..., 1]."""
    x = x.float()
    scales = x.abs().amax(dim=-1, keepdim=True) / INT8_LIMIT
    codes = (x / scales.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return codes, scales


def row_bytes(head_dim: int, dtype: torch.dtype, int8: bool) -> int:
    """Bytes of the key (or of the value) of one token in one head."""
    return head_dim + SCALE_BYTES if int8 else head_dim * dtype.itemsize


class TokenRows:
    """Keys (or values) of a fixed number of tokens, [B, tokens, heads, head_dim], as they are or in 8 bits."""

    def __init__(
        self, sizes: tuple[int, int, int, int], dtype: torch.dtype, int8: bool, device: torch.device | str = "cpu"
    ):
        self._dtype, self.int8 = dtype, int8
        self._rows = torch.zeros(sizes, dtype=torch.int8 if int8 else dtype, device=device)
        self._scales = torch.zeros((*sizes[:3], 1), dtype=torch.float32, device=device) if int8 else None

    @property
    def tokens(self) -> int:
        return self._rows.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._stored().values())

    def _stored(self) -> dict[str, Tensor]:
        return {"rows": self._rows} if self._scales is None else {"rows": self._rows, "scales": self._scales}

    def write(self, rows: Rows, x: Tensor) -> None:
        if self._scales is None:
            self._rows[:, rows] = x
        else:
            self._rows[:, rows], self._scales[:, rows] = quantise(x)

    def take_codes(self, rows: slice, codes: Tensor, scales: Tensor) -> None:
        """Writes what `quantise` made somewhere else."""
        stored = self._stored()
        stored["rows"][:, rows].copy_(codes, non_blocking=True)
        stored["scales"][:, rows].copy_(scales, non_blocking=True)

    def read(self, rows: Rows) -> Tensor:
        """A copy of those rows, in the dtype that they came in."""
        if self._scales is None:
            return self._rows[:, rows]
        return (self._rows[:, rows] * self._scales[:, rows]).to(self._dtype)

    def read_into(self, target: Tensor, rows: slice) -> None:
        """What `read` gives, written to `target` without a copy between."""
        if self._scales is None:
            target.copy_(self._rows[:, rows])
        else:
            torch.mul(self._rows[:, rows], self._scales[:, rows], out=target)

    def rearrange(self, target: Tensor, source: Tensor) -> None:
        """Puts the rows `source` where the rows `target` are; nothing is rounded again."""
        for stored in self._stored().values():
            stored[:, target] = stored[:, source]
