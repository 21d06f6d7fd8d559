from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry, blocks_for_seconds, compressed_grid, pixel_frames, size_text

SIZE = {"width": 64, "height": 32, "fps": 16.0}


def test_sizes_for_people_keep_what_is_small_apart_from_nothing():
    texts = {
        **{0: "0 MB", 420: "0.42 kB", 36_864: "37 kB", 99_900: "100 kB", 100_000: "0.1 MB", 4_718_592: "4.7 MB"},
        **{51_200_000: "51 MB", 99_900_000: "100 MB", 100_000_000: "0.10 GB", 3_985_000_000: "3.98 GB"},
    }
    assert {size: size_text(size) for size in texts} == texts


@pytest.mark.parametrize(
    ("seconds", "fps", "frames_per_block", "blocks", "frames"),
    [
        (30, 16, 4, 30, 477),
        (120, 16, 4, 120, 1917),
        (120, 16, 3, 160, 1917),
        (5, 16, 3, 7, 81),
        (30, 16, 1, 121, 481),
        (60, 24, 4, 90, 1437),
        (0.01, 16, 4, 1, 13),
    ],
)
def test_seconds_become_whole_blocks(seconds, fps, frames_per_block, blocks, frames):
    made = VideoGeometry.from_seconds(seconds, width=64, height=32, fps=fps, frames_per_block=frames_per_block)
    assert (made.blocks, made.pixel_frames) == (blocks, frames)
    assert made.latent_frames == blocks * frames_per_block
    assert made.seconds == frames / fps
    assert f"{seconds:g} s at {fps} FPS became {frames / fps:.2f} s: {frames} frames" in made.describe_length(seconds)


def test_pixel_frames_count_one_for_the_first_latent_frame_and_four_for_the_others():
    counted = [sum(1 if frame == 0 else 4 for frame in range(frames)) for frames in range(50)]
    assert [pixel_frames(frames) for frames in range(50)] == counted


@given(st.floats(0.001, 4000), st.sampled_from([8.0, 16.0, 23.976, 24.0, 60.0]), st.integers(1, 6))
def test_no_other_number_of_blocks_comes_nearer_to_the_wish(seconds, fps, frames_per_block):
    def miss(blocks: int) -> float:
        return abs(1 + 4 * (blocks * frames_per_block - 1) - seconds * fps)

    chosen = blocks_for_seconds(seconds, fps, frames_per_block)
    assert chosen >= 1
    assert all(miss(chosen) <= miss(other) + 1e-6 for other in range(max(1, chosen - 2), chosen + 3))


def test_sizes_follow_from_pixels():
    made = VideoGeometry(832, 480, 16.0, 4, 120)
    assert (made.latent_width, made.latent_height) == (104, 60)
    assert made.grid == (30, 52)
    assert made.tokens_per_frame == 1560
    assert made.block_shape == (1, 16, 4, 60, 104)


@pytest.mark.parametrize(("value", "below", "above"), [(840, 832, 848), (8, 16, 32), (0, 16, 32), (-16, 16, 32)])
@pytest.mark.parametrize("side", ["width", "height"])
def test_a_size_off_the_grid_is_refused_with_its_neighbours(side, value, below, above):
    sizes = {**SIZE, side: value}
    message = f"{side} is {value}; .* multiple of 16. The nearest sizes are {below} and {above}"
    with pytest.raises(PackForcingError, match=message):
        VideoGeometry(**sizes, frames_per_block=3, blocks=2)
    for neighbour in (below, above):
        VideoGeometry(**{**SIZE, side: neighbour}, frames_per_block=3, blocks=2)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["seconds", "fps", "frames_per_block"])
def test_what_is_no_positive_number_is_refused_by_name(name, value):
    given = {"seconds": 5, **SIZE, "frames_per_block": 3, name: value}
    with pytest.raises(PackForcingError, match=f"{name} is {value}; expected a positive number"):
        VideoGeometry.from_seconds(**given)


def test_a_length_beyond_all_numbers_is_refused():
    with pytest.raises(PackForcingError, match="at most 36000"):
        VideoGeometry.from_seconds(1e308, **SIZE, frames_per_block=3)


def test_no_blocks_are_refused():
    with pytest.raises(PackForcingError, match="blocks is 0"):
        VideoGeometry(**SIZE, frames_per_block=3, blocks=0)


@pytest.mark.parametrize(
    ("frames_per_block", "width", "height", "grid"),
    [
        (4, 832, 480, (2, 7, 13)),
        (3, 832, 480, (2, 7, 13)),
        (1, 832, 480, (1, 7, 13)),
        (5, 832, 480, (3, 7, 13)),
        (4, 480, 832, (2, 13, 7)),
        (4, 1280, 720, (2, 11, 20)),
        (4, 128, 64, (2, 1, 2)),
        (4, 128, 128, (2, 2, 2)),
        (4, 16, 16, (2, 1, 1)),
        (1, 16, 1024, (1, 16, 1)),
    ],
)
def test_a_compressed_block_has_half_the_frames_and_an_eighth_of_each_side(frames_per_block, width, height, grid):
    assert compressed_grid(frames_per_block, height // 8, width // 8) == grid


def test_a_block_of_4_at_832x480_is_182_tokens():
    assert math.prod(compressed_grid(4, 60, 104)) == 182
