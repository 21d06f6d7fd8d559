"""Keys and values in 8 or 4 bits: symmetric, with one scale for each row of head_dim values, or for groups of them.

A group x of values is stored as round(x / scale), with scale = (largest magnitude in x) / (largest code). Each restored
value is off by at most half a scale.

    bits   largest code   one scale per                     scale
    8      127            token and head                    float32
    4      7              32 values of a token and head     float16

A byte holds two 4-bit codes: value i of the row's first half in the low bits, value i of its second half in the high
bits.
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
"""Token rows as a range or as indices."""


def group_size(head_dim: int, bits: Bits) -> int:
    """Values that share a scale. With 4 bits no group spans both halves of a row."""
    return head_dim if bits == 8 else math.gcd(GROUP, head_dim // 2)


def quantise(x: Tensor, bits: Bits = 8) -> tuple[Tensor, Tensor]:
    """Codes and scales of x [..., head_dim]. Codes are int8 [..., head_dim], or two per byte: uint8 [..., head_dim /
    2]. Scales are [..., groups].
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
    """The values that `quantise` stored, in float32 [..., head_dim]."""
    if codes.dtype == torch.int8:
        return codes * scales
    return torch.cat([_half(*half).flatten(-2) for half in _halves(codes, scales)], dim=-1)


def restore_into(target: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Writes the result of `restored` to `target` without a temporary copy of its size."""
    if codes.dtype == torch.int8:
        torch.mul(codes, scales, out=target)
        return
    for part, half in zip(target.chunk(2, dim=-1), _halves(codes, scales), strict=True):
        part.unflatten(-1, (half[1].shape[-1], -1)).copy_(_half(*half))


def _halves(codes: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """4-bit codes and scales of the first and the second half of a row."""
    low, high = scales.chunk(2, dim=-1)
    yield codes & 15, low
    yield codes >> 4, high


def _half(codes: Tensor, scales: Tensor) -> Tensor:
    """[..., groups, numbers] float32."""
    return (codes.unflatten(-1, (scales.shape[-1], -1)).to(torch.int8) - 8) * scales.float().unsqueeze(-1)


def row_bytes(head_dim: int, dtype: torch.dtype, bits: Bits | None) -> int:
    """Bytes of the key (or of the value) of one token in one head; `bits` None means no quantisation."""
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
    """Keys (or values) of a fixed number of tokens, [B, tokens, heads, head_dim], plain or quantised."""

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
        """Stores codes and scales that `quantise` made elsewhere."""
        stored = self._stored()
        stored["rows"][:, rows].copy_(codes, non_blocking=True)
        stored["scales"][:, rows].copy_(scales, non_blocking=True)

    def read(self, rows: Rows) -> Tensor:
        """A copy of these rows in the original dtype."""
        if self._scales is None:
            return self._rows[:, rows]
        return restored(self._rows[:, rows], self._scales[:, rows]).to(self._dtype)

    def read_into(self, target: Tensor, rows: slice) -> None:
        """Writes the result of `read` to `target` without a temporary copy."""
        if self._scales is None:
            target.copy_(self._rows[:, rows])
        else:
            restore_into(target, self._rows[:, rows], self._scales[:, rows])

    def rearrange(self, target: Tensor, source: Tensor) -> None:
        """Copies the rows `source` to the rows `target`; quantised values are not rounded again."""
        for stored in self._stored().values():
            stored[:, target] = stored[:, source]
