"""The Triton programs. Only imported where Triton is installed; `fast` launches them."""

# ruff: noqa: N803 - Triton writes what it compiles in with capitals
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(x, rotation, out, tokens, x_batch, x_token, out_batch, out_token, turn_token,
           HEADS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """x [B, L, HEADS, DIM] with a stride for batch and token each; `rotation` float32 [L or 1, DIM / 2, 2]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    batch = tl.program_id(1).to(tl.int64)
    inside = row[:, None] < tokens
    row = row.to(tl.int64)[:, None]
    channel = tl.arange(0, DIM)[None, :]
    turn = tl.load(rotation + row * turn_token + channel, mask=inside, other=0.0)
    cos, sin = tl.split(tl.reshape(turn, (ROWS, DIM // 2, 2)))
    for head in range(HEADS):
        place = head * DIM + channel
        value = tl.load(x + batch * x_batch + row * x_token + place, mask=inside, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(value, (ROWS, DIM // 2, 2)))
        turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (ROWS, DIM))
        tl.store(out + batch * out_batch + row * out_token + place, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_silu(x, gamma, out, tail, rows, tail_rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """x, out [rows, WIDTH]; the last `tail_rows` rows go to `tail` too. COLUMNS is WIDTH or the next power of two."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < WIDTH)
    place = row[:, None] * WIDTH + column[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    scale = tl.load(gamma + column, mask=column < WIDTH, other=0.0).to(tl.float32) * tl.sqrt(WIDTH * 1.0)
    value = value / norm[:, None] * scale[None, :]
    value = (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty)
    tl.store(out + place, value, mask=inside)
    kept = inside & (row[:, None] >= rows - tail_rows)
    tl.store(tail + place - (rows - tail_rows) * WIDTH, value, mask=kept)
