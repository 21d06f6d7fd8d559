"""Rotations against a complex reference in float64, and METHOD 9.2: only differences of positions matter."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.rope import GridRope, axis_channels, rotate
from tests.exactness import SHALLOW, steps_off
from tests.reference.wan import grid_positions
from tests.reference.wan import rope as reference_rope

GRIDS = [(2, 3), (1, 1), (3, 5)]


def random_heads(frames: int, grid: tuple[int, int], head_dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames * grid[0] * grid[1], 2, head_dim, generator=generator)


def steps_from_float64(head_dim: int, grid: tuple[int, int], positions: list[float]) -> float:
    x = random_heads(len(positions), grid, head_dim)
    ours = rotate(x, GridRope(head_dim, grid).frames(positions))
    exact = reference_rope(x.double(), grid_positions(positions, grid))
    return steps_off(ours, exact)


def test_channels_of_a_head_are_split_between_time_height_and_width():
    assert axis_channels(128) == (44, 42, 42)
    assert axis_channels(64) == (24, 20, 20)
    for head_dim in range(6, 130, 2):
        assert axis_channels(head_dim) == (head_dim - 4 * (head_dim // 6), *[2 * (head_dim // 6)] * 2)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_is_the_complex_rotation(head_dim, grid):
    off = steps_from_float64(head_dim, grid, [0, 1, 2, 17, 20])
    print(f"{off:.1f} rounding steps from float64")
    assert off < SHALLOW


@pytest.mark.parametrize("first", [1023, 1024, 5000, 100_000])
def test_positions_far_out_stay_exact(first):
    off = steps_from_float64(128, (2, 3), [first, first + 1, first + 2])
    print(f"at {first}: {off:.1f} rounding steps from float64")
    assert off < SHALLOW


@pytest.mark.parametrize("positions", [[0.5, 2.5], [100_000.25, 100_000.3], [3, 3.7]])
def test_fractions_of_a_frame_are_positions_too(positions):
    off = steps_from_float64(128, (2, 3), positions)
    print(f"{off:.1f} rounding steps from float64")
    assert off < SHALLOW


@pytest.mark.parametrize("shift", [1, 1000, 100_000])
def test_shifting_all_positions_changes_attention_by_nothing(shift):
    grid, frames = (2, 3), [0, 1, 2, 7, 8, 9]
    q, k, v = (random_heads(len(frames), grid, 128, seed) for seed in range(3))
    rope = GridRope(128, grid)

    def attend(positions: list[int]) -> torch.Tensor:
        rotation = rope.frames(positions)
        return sdpa(rotate(4 * q, rotation), rotate(k, rotation), v)

    here, there = attend(frames), attend([frame + shift for frame in frames])
    gap_closed = attend([*range(6)])
    off = steps_off(there, here)
    print(f"{off:.1f} rounding steps apart; closing a gap of 4 frames makes {steps_off(gap_closed, here):.0f}")
    assert off < SHALLOW
    assert steps_off(gap_closed, here) > 1000 * SHALLOW


def test_reading_at_another_position_equals_rotating_there():
    """A key turned to 3 and from there on to 8 is the key turned to 8: turns add up."""
    grid = (2, 3)
    x = random_heads(1, grid, 128)
    rope = GridRope(128, grid)
    offset = torch.zeros(grid[0] * grid[1], 3, dtype=torch.float64)
    offset[:, 0] = 5
    moved = reference_rope(rotate(x, rope.frames([3])), offset)
    off = steps_off(moved, rotate(x, rope.frames([8])))
    print(f"{off:.1f} rounding steps from float64")
    assert off < SHALLOW


def test_a_frame_turns_alike_alone_and_among_others():
    grid = (3, 5)
    x = random_heads(3, grid, 64)
    rope = GridRope(64, grid)
    together = rotate(x, rope.frames([4, 9, 2000]))
    alone = [rotate(part, rope.frames([p])) for part, p in zip(x.split(15, dim=1), (4, 9, 2000), strict=True)]
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_bfloat16_is_turned_in_float32():
    """In bfloat16 the positions 1000 and 1001 are one number."""
    x = random_heads(2, (2, 3), 128).bfloat16()
    rotation = GridRope(128, (2, 3)).frames([1000, 1001])
    turned = rotate(x, rotation)
    exact = reference_rope(x.double(), grid_positions([1000, 1001], (2, 3)))
    difference = (turned - exact).abs().max().item()
    print(f"max difference {difference:.1e}, one rounding to bfloat16 is {exact.abs().max() / 256:.1e}")
    assert turned.dtype == torch.bfloat16
    assert difference <= exact.abs().max() / 256
