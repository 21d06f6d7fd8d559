"""Keys and values in 8 or 4 bits: symmetric, with a scale for every row of head_dim numbers, or for groups of them.

A group x of numbers is kept as round(x / scale) with scale = the largest magnitude in x / the largest code, so that
each number comes back within half a scale.

    bits   largest code   a scale for                      scale
    8      127            a token and head                 float32
    4      7              32 numbers of a token and head   float16

Two codes of 4 bits lie in a byte: that of number i of a row's first half, and above it that of number i of its second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[8, 4]
GROUP = 32

Rows = slice | Tensor
"""Which token rows: a range, or their indices."""


def group_size(head_dim: int, bits: Bits) -> int:
    """Numbers that share a scale; in 4 bits no group has some of both halves of a row."""
    return head_dim if bits == 8 else math.gcd(GROUP, head_dim // 2)


def quantise(x: Tensor, bits: Bits = 8) -> tuple[Tensor, Tensor]:
    """Codes of x [..., head_dim], int8 like it or two in a byte, uint8 [..., head_dim / 2]; and its scales
    [..., groups].
    """
    groups = x.float().unflatten(-1, (-1, group_size(x.shape[-1], bits)))
    limit = 2 ** (bits - 1) - 1
    scales = groups.abs().amax(dim=-1, keepdim=True) / limit
    if bits == 4:
        scales = scales.half()
    codes = (groups / scales.float().clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-limit, limit)
    codes, scales = codes.flatten(-2), scales.squeeze(-1)
    if bits == 8:
        return codes.to(torch.int8), scales
    low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4, scales


def restored(codes: Tensor, scales: Tensor) -> Tensor:
    """What `quantise` made of x, in float32 [..., head_dim]."""
    if codes.dtype == torch.int8:
        return codes * scales
    return torch.cat([_half(*half).flatten(-2) for half in _halves(codes, scales)], dim=-1)


def restore_into(target: Tensor, codes: Tensor, scales: Tensor) -> None:
    """What `restored` gives, written to `target` without a copy of its size between."""
    if codes.dtype == torch.int8:
        torch.mul(codes, scales, out=target)
        return
    for part, half in zip(target.chunk(2, dim=-1), _halves(codes, scales), strict=True):
        part.unflatten(-1, (half[1].shape[-1], -1)).copy_(_half(*half))


def _halves(codes: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes of 4 bits and scales of the first and the second half of a row."""
    low, high = scales.chunk(2, dim=-1)
    yield codes & 15, low
    yield codes >> 4, high


def _half(codes: Tensor, scales: Tensor) -> Tensor:
    """[..., groups, numbers] float32."""
    return (codes.unflatten(-1, (scales.shape[-1], -1)).to(torch.int8) - 8) * scales.float().unsqueeze(-1)


def row_bytes(head_dim: int, dtype: torch.dtype, bits: Bits | None) -> int:
    """Bytes of the key (or of the value) of one token in one head; `bits` None leaves it as it is."""
    if bits is None:
        return head_dim * dtype.itemsize
    groups = head_dim // group_size(head_dim, bits)
    return head_dim * bits // 8 + groups * (torch.float32 if bits == 8 else torch.float16).itemsize


def stored_as(
    sizes: tuple[int, ...], dtype: torch.dtype, bits: Bits | None
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Sizes and dtypes of the tensors that hold rows of `sizes` [..., head_dim]: the rows, or codes and scales."""
    if bits is None:
        return [(sizes, dtype)]
    *rows, head_dim = sizes
    scales = (*rows, head_dim // group_size(head_dim, bits))
    if bits == 8:
        return [(sizes, torch.int8), (scales, torch.float32)]
    return [((*rows, head_dim // 2), torch.uint8), (scales, torch.float16)]


class TokenRows:
    """Keys (or values) of a fixed number of tokens, [B, tokens, heads, head_dim], as they are or in few bits."""

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        dtype: torch.dtype,
        bits: Bits | None,
        device: torch.device | str = "cpu",
    ):
        self._dtype, self.bits = dtype, bits
        made = (torch.zeros(size, dtype=kind, device=device) for size, kind in stored_as(sizes, dtype, bits))
        self._rows, self._scales, *_ = *made, None

    @property
    def tokens(self) -> int:
        return self._rows.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._stored().values())

    def _stored(self) -> dict[str, Tensor]:
        return {"rows": self._rows} if self._scales is None else {"rows": self._rows, "scales": self._scales}

    def write(self, rows: Rows, x: Tensor) -> None:
        if self.bits is None or self._scales is None:
            self._rows[:, rows] = x
        else:
            self._rows[:, rows], self._scales[:, rows] = quantise(x, self.bits)

    def take_codes(self, rows: slice, codes: Tensor, scales: Tensor) -> None:
        """Writes what `quantise` made somewhere else."""
        stored = self._stored()
        stored["rows"][:, rows].copy_(codes, non_blocking=True)
        stored["scales"][:, rows].copy_(scales, non_blocking=True)

    def read(self, rows: Rows) -> Tensor:
        """A copy of those rows, in the dtype that they came in."""
        if self._scales is None:
            return self._rows[:, rows]
        return restored(self._rows[:, rows], self._scales[:, rows]).to(self._dtype)

    def read_into(self, target: Tensor, rows: slice) -> None:
        """What `read` gives, written to `target` without a copy between."""
        if self._scales is None:
            target.copy_(self._rows[:, rows])
        else:
            restore_into(target, self._rows[:, rows], self._scales[:, rows])

    def rearrange(self, target: Tensor, source: Tensor) -> None:
        """Puts the rows `source` where the rows `target` are; nothing is rounded again."""
        for stored in self._stored().values():
            stored[:, target] = stored[:, source]
