"""Pictures, films and latents become the blocks that a render begins from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry, pixel_frames
from packforcing_core.source import (
    adaptations,
    at_rate,
    blocks_in,
    encoded,
    fitted,
    given_by_frames,
    given_by_latents,
    last_frames,
    part_used,
    repainted_by_frames,
)
from packforcing_core.vae.config import unnormalise
from packforcing_core.vae.streaming import encode
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.films import picture
from tests.vaes import random_vae

GEOMETRY = VideoGeometry(64, 48, 16.0, 3, 10)


def numbered(count: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), number, np.uint8) for number in range(count)]


def numbers(frames) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def test_the_last_frames_end_where_the_film_ends_whatever_its_rate():
    assert numbers(last_frames(numbered(50), 16.0, 16.0, 5)) == [45, 46, 47, 48, 49]
    assert numbers(last_frames(numbered(50), 32.0, 16.0, 4)) == [43, 45, 47, 49]
    assert numbers(last_frames(numbered(50), 8.0, 16.0, 5)) == [47, 47, 48, 48, 49]
    assert numbers(last_frames(numbered(3), 16.0, 16.0, 9)) == [0, 1, 2]


def test_a_film_of_another_rate_keeps_its_length():
    assert numbers(at_rate(numbered(4), 16.0, 16.0)) == [0, 1, 2, 3]
    assert numbers(at_rate(numbered(6), 24.0, 16.0)) == [0, 1, 3, 4]
    assert numbers(at_rate(numbered(3), 8.0, 16.0)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("size", "rate", "told"),
    [
        ((64, 48), 16.0, ()),
        ((64, 48), None, ()),
        ((640, 480), None, ("The start is 640x480: scaled to cover 64x48.",)),
        (
            (360, 640),
            None,
            (
                "Warning: The start is 360x640: scaled to cover 64x48, and 58% of each frame is cropped. "
                "To keep more of it, exchange width and height (48x64).",
            ),
        ),
        (
            (480, 480),
            None,
            ("The start is 480x480: scaled to cover 64x48, and 25% of each frame is cropped.",),
        ),
        ((64, 48), 30000 / 1001, ("The start has 29.97 FPS: converted to 16, at the same speed.",)),
    ],
)
def test_how_a_start_is_adapted_is_said(size, rate, told):
    assert adaptations(*size, rate, GEOMETRY, any_size=True) == told
    only_size = adaptations(*size, rate, GEOMETRY, any_size=False)
    assert [text.partition(" To keep more")[0] for text in told] == list(only_size), "no other size is advised"


@pytest.mark.parametrize(
    ("frames", "rate", "seconds", "told"),
    [
        (1200, 30.0, 3.0, "Of the clip's 40.0 s the last 2.8 s are used."),
        (1200, 30.0, None, "Of the clip's 40.0 s the first 3.6 s are used."),
        (60, 30.0, 9.0, "Of the clip's 2.0 s the last 1.3 s are used."),
        (60, 30.0, None, "Of the clip's 2.0 s the first 1.3 s are used."),
        (45, 16.0, 3.0, None),
        (5, 16.0, 3.0, None),
    ],
)
def test_how_much_of_a_clip_is_used_is_said_and_true(frames, rate, seconds, told):
    """Blocks of 3: whole ones only, and a clip shorter than one is used whole."""
    geometry = VideoGeometry(64, 48, 16.0, 3, 5)
    assert part_used(frames, rate, geometry, seconds) == ((told,) if told else ())
    clip, vae = np.zeros((frames, 48, 64, 3), np.uint8), random_vae()
    if seconds is None:
        latents = repainted_by_frames(vae, at_rate(clip, rate, 16.0), geometry)
    else:
        count = pixel_frames(blocks_in(seconds, geometry) * 3)
        latents = given_by_frames(vae, last_frames(clip, rate, 16.0, count), geometry)
    if told:
        assert f" {pixel_frames(latents.shape[2]) / 16:.1f} s are" in told


def test_frames_are_scaled_to_cover_and_the_middle_is_used():
    wide = np.zeros((1, 48, 128, 3), np.uint8)
    wide[:, :, 32:96] = 255
    assert fitted(wide, 64, 48).min() == 1
    assert fitted(wide, 128, 48).shape == (1, 3, 1, 48, 128)
    large = fitted(picture(0, 1, 640, 480), 64, 48)
    means = picture(0, 1, 640, 480)[0].reshape(48, 10, 64, 10, 3).mean(axis=(1, 3))
    difference = (large[0, :, 0].permute(1, 2, 0) - (torch.from_numpy(means) / 127.5 - 1)).abs().mean()
    print(f"mean difference to the means of 10 x 10 pixels {difference:.3f}")
    assert large.shape == (1, 3, 1, 48, 64)
    assert difference < 0.1


def test_latents_are_those_of_the_whole_film_though_it_is_encoded_piece_by_piece():
    vae, frames = random_vae(), picture(0, 41)
    latents = encoded(vae, iter(frames), GEOMETRY)
    off = steps_off(latents, encode(vae, fitted(frames, 64, 48)))
    print(f"{off:.1f} rounding steps apart")
    assert latents.shape == (1, 16, 11, 6, 8)
    assert off < DEEP


def test_a_picture_is_a_block_that_stands_still_and_one_frame_where_blocks_are_frames():
    vae, still = random_vae(), picture(3, 1)[0]
    repeated = fitted(np.stack([still] * 9), 64, 48)
    assert torch.equal(given_by_frames(vae, [still], GEOMETRY), encode(vae, repeated))
    framewise = VideoGeometry(64, 48, 16.0, 1, 10)
    assert torch.equal(given_by_frames(vae, [still], framewise), encode(vae, repeated[:, :, :1]))


@pytest.mark.parametrize(("frames", "blocks", "used"), [(9, 1, 9), (20, 1, 9), (21, 2, 21), (30, 2, 21), (33, 3, 33)])
def test_the_end_of_a_film_is_encoded_as_if_the_film_began_there(frames, blocks, used):
    vae, film = random_vae(), picture(0, frames)
    given = given_by_frames(vae, list(film), GEOMETRY)
    assert given.shape[2] == 3 * blocks
    assert steps_off(given, encode(vae, fitted(film[-used:], 64, 48))) < DEEP


def test_latents_go_on_from_their_last_whole_blocks():
    samples = torch.randn(1, 16, 8, 6, 8)
    assert steps_off(unnormalise(given_by_latents(samples, GEOMETRY, 1)), samples[:, :, -3:]) < SHALLOW
    assert given_by_latents(samples, GEOMETRY, 9).shape[2] == 6


def test_a_film_is_repainted_as_far_as_the_render_goes():
    vae = random_vae()
    short, long = (VideoGeometry(64, 48, 16.0, 3, blocks) for blocks in (2, 9))
    film = picture(0, 40)
    assert repainted_by_frames(vae, film, short).shape[2] == 6
    assert repainted_by_frames(vae, film, long).shape[2] == 9


def test_seconds_become_whole_blocks():
    assert [blocks_in(seconds, GEOMETRY) for seconds in (0.01, 0.75, 3.0, 3.3)] == [1, 1, 4, 4]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: given_by_latents(torch.zeros(1, 16, 2, 6, 8), GEOMETRY, 1), "2 latent frames.*a block has 3"),
        (lambda: given_by_latents(torch.zeros(1, 16, 9, 6, 9), GEOMETRY, 1), r"\[1, 16, 9, 6, 9\].*64x48 pixels"),
        (lambda: given_by_latents(torch.zeros(1, 4, 8, 8), GEOMETRY, 1), "LATENT of shape"),
        (lambda: repainted_by_frames(random_vae(), picture(0, 8), GEOMETRY), "needs 9 frames or more at 16 FPS"),
        (lambda: encoded(random_vae(), [], GEOMETRY), "has no frames"),
        (lambda: last_frames([], 16.0, 16.0, 3), "has no frames"),
        (lambda: encoded(random_vae(), [picture(0)[0], picture(0, 1, 32, 32)[0]], GEOMETRY), "expected one size"),
        (lambda: fitted(np.zeros((1, 8, 8, 4), np.uint8), 16, 16), "images of shape"),
        (lambda: blocks_in(float("nan"), GEOMETRY), "nan seconds"),
    ],
)
def test_what_cannot_be_begun_from_is_refused(broken, message):
    with pytest.raises(PackForcingError, match=message):
        broken()
