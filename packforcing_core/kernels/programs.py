"""The Triton kernels. Imported only if Triton is installed; `fast` launches them."""

# ruff: noqa: N803 - Triton writes what it compiles in with capitals
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(x, rotation, out, tokens, x_batch, x_token, out_batch, out_token, turn_token,
           HEADS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """x [B, L, HEADS, DIM] with strides for batch and token; `rotation` float32 [L or 1, DIM / 2, 2]."""
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
def norm_silu(x, bias, gamma, out, tail, rows, tail_rows,
              BIASED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """x, out [rows, WIDTH]; the last `tail_rows` rows go to `tail` too. COLUMNS is WIDTH or the next power of two. With
    BIASED, `bias` [WIDTH] is added to x first.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < WIDTH)
    place = row[:, None] * WIDTH + column[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    norm = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    scale = tl.load(gamma + column, mask=column < WIDTH, other=0.0).to(tl.float32) * tl.sqrt(WIDTH * 1.0)
    value = value / norm[:, None] * scale[None, :]
    value = (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty)
    tl.store(out + place, value, mask=inside)
    kept = inside & (row[:, None] >= rows - tail_rows)
    tl.store(tail + place - (rows - tail_rows) * WIDTH, value, mask=kept)


@triton.jit
def add_biased(x, bias, other, size, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr):
    """x += bias + other; x and other [size / WIDTH, WIDTH], bias [WIDTH]."""
    place = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = place < size
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + place % WIDTH, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + place, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def doubled(x, out, columns, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr):
    """Each pixel of the images x [rows, columns, WIDTH] four times: out [2 rows, 2 columns, WIDTH]."""
    row, size = tl.program_id(1).to(tl.int64), columns * WIDTH
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = place < size
    value = tl.load(x + row * size + place, mask=inside, other=0.0)
    left = out + 4 * row * size + place // WIDTH * (2 * WIDTH) + place % WIDTH
    for below in range(2):
        tl.store(left + below * 2 * size, value, mask=inside)
        tl.store(left + below * 2 * size + WIDTH, value, mask=inside)


@triton.jit
def add_scaled(base, x, gain, out, size, base_frame, gain_frame,
               SHIFTS: tl.constexpr, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr):  # fmt: skip
    """out = base + gain x for the frames x, out [F, size / WIDTH, WIDTH]; gain [WIDTH] per frame, and so is base with
    SHIFTS, otherwise it is like x. `base_frame` and `gain_frame` are strides of the frames.
    """
    frame = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = place < size
    channel = place % WIDTH
    value = tl.load(x + frame * size + place, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(gain + frame * gain_frame + channel, mask=inside, other=0.0).to(tl.float32)
    own = channel if SHIFTS else place
    value += tl.load(base + frame * base_frame + own, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + frame * size + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def chosen_slots(scores, blocks, held, out, count, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    """`plain.chosen_slots` in one program: scores, blocks [count], held [SLOTS], out [3, SLOTS]. COLUMNS is the next
    power of two of `count`.
    """
    column = tl.arange(0, COLUMNS)
    inside = column < count
    score = tl.load(scores + column, mask=inside, other=float("-inf"))
    block = tl.load(blocks + column, mask=inside, other=-1)
    taken = inside & (block < 0)
    for _ in range(SLOTS):
        free = inside & (taken == 0)
        best = tl.max(tl.where(free, score, float("-inf")), axis=0)
        newest = tl.max(tl.where(free & (score == best), block, -1), axis=0)
        taken = taken | (inside & (block == newest))
    missing = taken
    for slot in range(SLOTS):
        missing = missing & (block != tl.load(held + slot))
    for slot in range(SLOTS):
        own = tl.load(held + slot)
        stays = tl.max(tl.where(taken & (block == own), 1, 0), axis=0)
        first = tl.min(tl.where(missing, block, 2147483647), axis=0)
        shown = tl.where(stays > 0, own, first)
        missing = missing & (block != shown)
        tl.store(out + slot, shown)
        tl.store(out + SLOTS + slot, tl.sum(tl.where(taken & (block == shown), column, 0), axis=0))
        tl.store(out + 2 * SLOTS + slot, tl.sum(tl.where(taken & (block < shown), 1, 0), axis=0))


@triton.jit
def recall(bank, slots, held, out, count, size, batches, out_slot, out_batch, AT_ONCE: tl.constexpr):
    """Copies rows of `bank` [.., batches, size], which may be pinned system RAM, to `out` [count, batches, size], with
    strides for slot and batch: the bank slots in slots[1] [count], where slots[0] differs from `held`.
    """
    slot, batch = tl.program_id(1), tl.program_id(2)
    source = tl.load(slots + count + slot).to(tl.int64)
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    wanted = (place < size) & (tl.load(slots + slot) != tl.load(held + slot))
    value = tl.load(bank + (source * batches + batch) * size + place, mask=wanted)
    tl.store(out + slot.to(tl.int64) * out_slot + batch * out_batch + place, value, mask=wanted)
