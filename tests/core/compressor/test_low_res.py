"""The branch without weights: which frames it encodes, and that they make exactly the grid."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.compressor.low_res import block_video_shape, low_res_clip, low_res_latents
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import compressed_grid
from tests.exactness import SHALLOW, steps_off
from tests.reference import compressor as reference
from tests.small_compressor import random_latents, random_video, small_encode

SIZES = [(8, 16), (16, 16), (2, 2), (10, 26), (26, 10), (4, 36), (12, 20)]


@pytest.mark.parametrize("first_block", [True, False])
@pytest.mark.parametrize("frames", range(1, 10))
def test_every_block_length_becomes_half_as_many_latents(frames, first_block):
    latents = random_latents(frames, 2, 4)
    encoded = small_encode()(low_res_clip(random_video(latents, first_block), latents.shape, first_block))
    kept = low_res_latents(small_encode(), random_video(latents, first_block), latents.shape, first_block)
    assert encoded.shape[2] == 1 + (frames + 1) // 2
    assert kept.shape[2] == (frames + 1) // 2
    assert torch.equal(kept, encoded[:, :, 1:])


@pytest.mark.parametrize(
    ("frames", "first_block", "expected"),
    [
        (1, True, [0, 0, 0, 0, 0]),
        (1, False, [0.5, 0.5, 2.5, 3, 3]),
        (2, True, [0, 0, 0, 1.5, 3.5]),
        (2, False, [0.5, 0.5, 2.5, 4.5, 6.5]),
        (3, True, [0, 0, 0, 0, 0, 1.5, 3.5, 5.5, 7.5]),
        (3, False, [0.5, 0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 11, 11]),
        (4, True, [0, 0, 0, 1.5, 3.5, 5.5, 7.5, 9.5, 11.5]),
        (4, False, [0.5, 0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]),
    ],
)
def test_frames_are_padded_averaged_in_pairs_and_led_by_a_copy_of_the_first(frames, first_block, expected):
    latent_shape = random_latents(frames, 2, 2).shape
    shape = block_video_shape(latent_shape, first_block)
    numbered = torch.arange(shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1).expand(shape)
    clip = low_res_clip(numbered, latent_shape, first_block)
    assert clip[0, 0, :, 0, 0].tolist() == expected


@pytest.mark.parametrize("first_block", [True, False])
@pytest.mark.parametrize("frames", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_clip_is_the_one_of_the_definition(frames, height, width, first_block):
    latents = random_latents(frames, height, width)
    video = random_video(latents, first_block)
    clip = low_res_clip(video, latents.shape, first_block)
    expected = reference.clip(video, frames, compressed_grid(frames, height, width), first_block)
    assert clip.shape == expected.shape
    off = steps_off(clip, expected)
    print(f"{off:.1f} rounding steps from the definition in float64")
    assert off < SHALLOW


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_nothing_is_cut_off(height, width):
    latents = random_latents(4, height, width)
    video = random_video(latents).requires_grad_()
    low_res_clip(video, latents.shape, first_block=False).sum().backward()
    print(f"least weight of a pixel: {video.grad.min():.1e}")
    assert (video.grad > 0).all()


def test_a_block_of_480_rows_is_encoded_at_112x208():
    latents = random_latents(4, 60, 104)
    clip = low_res_clip(random_video(latents), latents.shape, first_block=False)
    assert clip.shape == (1, 3, 9, 112, 208)


def test_it_has_no_state_and_writes_to_nothing():
    encode, latents = small_encode(), random_latents(3, 8, 16)
    video = random_video(latents)
    before = video.clone()
    first = low_res_latents(encode, video, latents.shape, first_block=False)
    low_res_latents(encode, random_video(latents, True, seed=1), latents.shape, first_block=True)
    assert torch.equal(low_res_latents(encode, video, latents.shape, first_block=False), first)
    assert torch.equal(video, before)


@pytest.mark.parametrize(
    ("shape", "first_block"),
    [
        ((1, 3, 16, 64, 128), True),
        ((1, 3, 13, 64, 128), False),
        ((1, 3, 16, 128, 64), False),
        ((2, 3, 16, 64, 128), False),
        ((1, 16, 64, 128, 3), False),
    ],
)
def test_frames_of_another_shape_are_refused(shape, first_block):
    with pytest.raises(PackForcingError, match=r"expected \[1, 3, 1[36], 64, 128\]"):
        low_res_latents(small_encode(), torch.zeros(shape), random_latents(4, 8, 16).shape, first_block)
