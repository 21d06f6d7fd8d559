"""The tiny decoder in pieces against the whole video at once, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from packforcing_core.errors import PackForcingError
from packforcing_core.vae.config import normalise
from packforcing_core.vae.decoders import decoder_bytes, streaming_decoder
from packforcing_core.vae.tiny import MemBlock, TinyDecoder, TinyVAE, is_tiny, load_tiny
from tests.exactness import DEEP, in_float64, steps_off
from tests.vaes import random_latents, random_vae

WIDTHS = (12, 10, 8, 8)


def tiny(raw: bool = False, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> TinyVAE:
    torch.manual_seed(seed)
    return TinyVAE(widths, raw).eval().requires_grad_(False)


def whole(vae: TinyVAE, latents: torch.Tensor) -> torch.Tensor:
    """Layer after layer over all frames, as TAEHV's parallel mode does it; the first 3 frames are cut off."""
    x = latents.transpose(1, 2)[0]
    for layer in vae.decoder:
        x = layer(x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]) if isinstance(layer, MemBlock) else layer(x)
    return (2 * x[3:] - 1).clamp(-1, 1).transpose(0, 1)[None]


@pytest.mark.parametrize("sizes", [(7,), (1, 1, 1, 1, 1, 1, 1), (3, 3, 1), (1, 4, 2)])
def test_pieces_are_the_whole_video(sizes):
    vae, latents = tiny(), random_latents(7)
    decoder = TinyDecoder(vae)
    video = torch.cat([decoder.push(piece) for piece in latents.split(sizes, dim=2)], dim=2)
    at_once = TinyDecoder(vae).push(latents)
    off = steps_off(video, whole(in_float64(vae), latents.double()))
    print(f"pieces {sizes}: {off:.1f} rounding steps from the whole in float64, deviation {video.std():.2f}")
    assert video.shape == (1, 3, 25, 24, 40)
    assert torch.equal(video, at_once)
    assert off < DEEP
    assert video.std() > 1e-3


def test_a_decoder_begins_again_after_a_reset():
    vae, latents = tiny(), random_latents(6)
    decoder = TinyDecoder(vae)
    first = decoder.push(latents[:, :, :3])
    assert not torch.equal(decoder.push(latents[:, :, :3]), first)
    decoder.reset()
    assert torch.equal(decoder.push(latents[:, :, :3]), first)


def test_raw_latents_are_those_of_the_wan_vae():
    latents = random_latents(2)
    raw, plain = TinyDecoder(tiny(True)).push(normalise(latents)), TinyDecoder(tiny()).push(latents)
    assert steps_off(raw, plain) < DEEP


def test_weights_load_by_their_shapes_and_the_encoder_is_left_alone():
    vae = tiny()
    tensors = {**vae.state_dict(), "encoder.0.weight": torch.zeros(1)}
    again = load_tiny(tensors, raw_latents=False)
    assert again.widths == WIDTHS
    assert torch.equal(TinyDecoder(again).push(random_latents(2)), TinyDecoder(vae).push(random_latents(2)))
    assert is_tiny(tensors)
    assert not is_tiny(random_vae().state_dict())


def test_key_names_are_those_of_the_files():
    keys = set(tiny(False).state_dict())
    assert {"decoder.1.weight", "decoder.3.conv.4.bias", "decoder.7.conv.weight", "decoder.8.weight"} <= keys
    assert {"decoder.13.conv.weight", "decoder.20.weight", "decoder.22.bias"} <= keys
    assert "decoder.8.bias" not in keys


def test_the_decoder_is_chosen_by_the_network():
    assert isinstance(streaming_decoder(tiny()), TinyDecoder)
    assert not isinstance(streaming_decoder(random_vae()), TinyDecoder)
    small, full = (
        decoder_bytes(vae, 480, 832, torch.float16) for vae in (tiny(widths=(256, 128, 64, 64)), random_vae())
    )
    print(f"planned for 832x480: {small / 1e9:.2f} GB; a narrow Wan VAE {full / 1e9:.2f} GB")
    assert small > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.1.weight": torch.zeros(12, 48, 3, 3)}, "48 latent channels"),
        ({"decoder.9.conv.0.bias": None}, r"does not fit: decoder.9.conv.0.bias"),
        ({"decoder.7.conv.weight": torch.zeros(24, 12, 1, 1)}, "does not fit: decoder.7.conv.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    tensors = {name: t for name, t in {**tiny().state_dict(), **change}.items() if t is not None}
    with pytest.raises(PackForcingError, match=message):
        load_tiny(tensors, raw_latents=False)


def test_what_is_no_video_is_refused():
    decoder = TinyDecoder(tiny())
    with pytest.raises(PackForcingError, match="latents of shape"):
        decoder.push(torch.zeros(1, 4, 1, 8, 8))
