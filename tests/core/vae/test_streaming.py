import numpy as np
import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.vae import state as state_module
from packforcing_core.vae import streaming, wan_vae
from packforcing_core.vae.config import VAEConfig, normalise, unnormalise
from packforcing_core.vae.streaming import StreamingDecoder, StreamingEncoder, decode, encode, to_frames
from tests.exactness import DEEP, SHALLOW, in_float64, steps_off
from tests.reference.vae import decode_whole, encode_whole
from tests.vaes import random_latents, random_vae, random_video


@pytest.fixture(params=[0, wan_vae.SMALL], ids=["frame by frame", "in pairs"])
def small(request, monkeypatch):
    monkeypatch.setattr(wan_vae, "SMALL", request.param)


def decode_pushes(vae, latents, pushes):
    decoder = StreamingDecoder(vae)
    return torch.cat([decoder.push(piece) for piece in latents.split(pushes, dim=2)], dim=2)


def encode_pushes(vae, video, pushes):
    encoder = StreamingEncoder(vae)
    return torch.cat([encoder.push(piece) for piece in video.split(pushes, dim=2)], dim=2)


def test_pushes_of_any_size_give_the_same_frames_bit_for_bit(small):
    vae, latents = random_vae(), random_latents(7)
    whole = decode(vae, latents)
    assert whole.shape == (1, 3, 25, 24, 40)
    for pushes in ([1] * 7, [1, 2, 3, 1], [3, 3, 1], [2, 1, 4], [6, 1]):
        assert torch.equal(decode_pushes(vae, latents, pushes), whole), pushes


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (2, 7)])
def test_decoding_equals_a_network_that_sees_the_whole_video_at_once(frames, size, small):
    vae, latents = random_vae(), random_latents(frames, *size, batch=2)
    expected = decode_whole(in_float64(vae), unnormalise(latents).double()).clamp(-1, 1)
    off = steps_off(decode(vae, latents), expected)
    print(f"{off:.0f} rounding steps from float64, in values of deviation {expected.std():.2f}")
    assert expected.std() > 0.1
    assert off < DEEP


@pytest.mark.parametrize("pushes", [[1] * 17, [1, 4, 4, 4, 4], [2, 3, 7, 5], [17], [5, 12]])
def test_clips_of_any_size_give_the_same_latents_bit_for_bit(pushes):
    vae, video = random_vae(), random_video(17)
    whole = encode(vae, video)
    assert whole.shape == (1, 16, 5, 3, 5)
    assert torch.equal(encode_pushes(vae, video, pushes), whole)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encoding_equals_a_network_that_sees_the_whole_video_at_once(frames):
    vae, video = random_vae(), random_video(frames, batch=2)
    expected = normalise(encode_whole(in_float64(vae), video.double()))
    off = steps_off(encode(vae, video), expected)
    print(f"{off:.0f} rounding steps from float64, in values of deviation {expected.std():.2f}")
    assert expected.std() > 0.1
    assert off < DEEP


@pytest.fixture
def written(monkeypatch):
    """Convolutions as at sizes of use: written behind their tail, not frame by frame in 2-D."""
    monkeypatch.setattr(state_module, "UNFOLDED_SIZE", 0)


@pytest.mark.parametrize("pushes", [[7], [1, 4, 2], [4, 3], [1] * 7])
def test_several_latent_frames_a_call_give_the_same_frames(pushes, written, monkeypatch):
    vae, latents = random_vae(), random_latents(7)
    expected = decode_whole(in_float64(vae), unnormalise(latents).double()).clamp(-1, 1)
    monkeypatch.setattr(streaming, "frames_at_once", lambda *_: wan_vae.TOGETHER)
    made = decode_pushes(vae, latents, pushes)
    off = steps_off(made, expected)
    print(f"{off:.0f} rounding steps from float64, in values of deviation {expected.std():.2f}")
    assert off < DEEP
    assert torch.equal(decode_pushes(vae, latents, pushes), made)


@pytest.mark.parametrize("frames", [1, 9, 13])
def test_several_latent_frames_a_call_encode_to_the_same_latents(frames, written, monkeypatch):
    vae, video = random_vae(), random_video(frames)
    expected = normalise(encode_whole(in_float64(vae), video.double()))
    monkeypatch.setattr(StreamingEncoder, "_together", lambda *_: True)
    off = steps_off(encode(vae, video), expected)
    print(f"{off:.0f} rounding steps from float64, in values of deviation {expected.std():.2f}")
    assert off < DEEP


def test_frames_written_behind_their_tail_are_the_same_for_pushes_of_any_size(small, written):
    vae, latents = random_vae(), random_latents(5)
    whole = decode(vae, latents)
    assert torch.equal(decode_pushes(vae, latents, [1, 1, 3]), whole)
    off = steps_off(whole, decode_whole(in_float64(vae), unnormalise(latents).double()).clamp(-1, 1))
    print(f"{off:.0f} rounding steps from float64")
    assert off < DEEP


def test_the_standard_depth_and_two_residual_blocks_agree_too():
    vae, latents = random_vae(VAEConfig(encoder_dim=4, decoder_dim=4)), random_latents(3, 2, 3)
    expected = decode_whole(in_float64(vae), unnormalise(latents).double()).clamp(-1, 1)
    off = steps_off(decode(vae, latents), expected)
    print(f"{off:.0f} rounding steps from float64")
    assert off < DEEP


def test_frames_wait_until_a_latent_frame_is_complete_and_a_rest_is_dropped():
    vae, video = random_vae(), random_video(8)
    encoder = StreamingEncoder(vae)
    counts = [encoder.push(piece).shape[2] for piece in video.split([1, 3, 1, 3], dim=2)]
    assert counts == [1, 0, 1, 0]
    assert torch.equal(encode(vae, video), encode(vae, video[:, :, :5]))


def test_a_fork_goes_on_bit_for_bit_and_leaves_the_other_alone(small):
    latents = random_latents(6)
    decoder = StreamingDecoder(random_vae())
    decoder.push(latents[:, :, :3])
    first, second = decoder.fork(), decoder.fork()
    expected = first.push(latents[:, :, 3:])
    assert torch.equal(second.push(latents[:, :, 3:]), expected)
    assert torch.equal(decoder.push(latents[:, :, 3:]), expected)


def test_reset_begins_another_video():
    vae, latents, video = random_vae(), random_latents(2), random_video(7)
    decoder, encoder = StreamingDecoder(vae), StreamingEncoder(vae)
    frames, own = decoder.push(latents), encoder.push(video)
    decoder.reset(), encoder.reset()
    assert torch.equal(decoder.push(latents), frames)
    assert torch.equal(encoder.push(video), own)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 48, 2, 3, 5), "expected .B, 16, T"),
        ((16, 2, 3, 5), "expected .B, 16, T"),
        ((1, 16, 0, 3, 5), "none of them 0"),
        ((1, 16, 2, 3, 6), "started with"),
        ((2, 16, 2, 3, 5), "started with"),
    ],
)
def test_latents_that_do_not_fit_are_refused(shape, message):
    decoder = StreamingDecoder(random_vae())
    decoder.push(random_latents(1))
    with pytest.raises(PackForcingError, match=message):
        decoder.push(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 4, 1, 24, 40), "expected .B, 3, T"),
        ((1, 3, 1, 20, 40), "multiples of 8"),
        ((1, 3, 1, 24, 48), "started with"),
    ],
)
def test_video_that_does_not_fit_is_refused(shape, message):
    encoder = StreamingEncoder(random_vae())
    encoder.push(random_video(1))
    with pytest.raises(PackForcingError, match=message):
        encoder.push(torch.zeros(shape))


def test_the_network_may_compute_in_bfloat16_and_gives_float32():
    vae, latents = random_vae(), random_latents(3)
    exact = decode(vae, latents)
    frames = StreamingDecoder(vae.to(torch.bfloat16)).push(latents)
    difference = (frames - exact).abs().mean()
    print(f"mean difference {difference:.1e}")
    assert frames.dtype == torch.float32
    assert difference < 0.02


def test_normalising_undoes_unnormalising():
    latents = random_latents(2)
    off = steps_off(normalise(unnormalise(latents)), latents)
    print(f"{off:.1f} rounding steps")
    assert off < SHALLOW
    assert unnormalise(torch.zeros(1, 16, 1, 1, 1)).flatten()[5] == pytest.approx(0.9653)


def test_pictures_are_rounded_to_the_nearest_of_256_levels():
    video = torch.tensor([-1.0, -0.999, 0.0, 0.5, 1.0]).view(1, 1, 5, 1, 1).repeat(1, 3, 1, 2, 4)
    frames = to_frames(video)
    assert frames.shape == (5, 2, 4, 3)
    assert frames.dtype == np.uint8
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 191, 255]
    with pytest.raises(PackForcingError, match=r"expected .1, 3, T"):
        to_frames(video.repeat(2, 1, 1, 1, 1))
