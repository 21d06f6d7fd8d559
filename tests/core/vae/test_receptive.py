"""How far back a decoder looks: warmed up from there it decodes bit for bit, from one frame later it does not."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.decoders import push_block, streaming_decoder
from packforcing_core.vae.receptive import frames_looked_back, warm_up
from packforcing_core.vae.tiny import TinyVAE
from tests.vaes import SMALL, TINY, random_latents, random_vae

STANDARD = VAEConfig(encoder_dim=8, decoder_dim=8)
"""The Wan VAE's depth at a width of 8: how wide it is does not matter."""


def tiny(width: int = 8) -> TinyVAE:
    torch.manual_seed(0)
    return TinyVAE((width,) * 4, raw_latents=False).eval().requires_grad_(False)


DECODERS = {
    "standard depth": (lambda: random_vae(STANDARD), 38),
    "narrow": (lambda: random_vae(SMALL), 30),
    "smallest": (lambda: random_vae(TINY), 22),
    "tiny autoencoder": (tiny, 8),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("pushes", [1, 3, 100])
def test_a_decoder_that_begins_so_far_back_decodes_the_same_bits_and_one_that_begins_later_does_not(name, pushes):
    build, expected = DECODERS[name]
    vae = build()
    frames = frames_looked_back(vae)
    assert frames == expected
    before, block = random_latents(frames + 3, 2, 3), random_latents(2, 2, 3, seed=4)
    whole = streaming_decoder(vae)
    warm_up(whole, [before])
    wanted, differences = whole.push(block), []
    for known in (frames, frames - 1):
        decoder = streaming_decoder(vae)
        warm_up(decoder, before[:, :, -known:].split(pushes, dim=2))
        differences.append((decoder.push(block) - wanted).abs().max().item())
    print(f"{frames} frames back: {differences[0]:.1e}; {frames - 1}: {differences[1]:.1e}")
    assert differences[0] == 0
    assert differences[1] > 0


@pytest.mark.parametrize("name", DECODERS)
def test_a_video_that_is_shorter_is_decoded_from_its_beginning(name):
    vae = DECODERS[name][0]()
    latents = random_latents(6, 2, 3)
    whole, warm = streaming_decoder(vae), streaming_decoder(vae)
    expected = whole.push(latents)[:, :, -8:]
    warm_up(warm, [latents[:, :, :4]])
    assert torch.equal(warm.push(latents[:, :, 4:]), expected)


@pytest.mark.parametrize("name", ["smallest", "tiny autoencoder"])
def test_behind_a_cut_a_scene_is_decoded_alone_and_its_first_frame_is_held_for_four(name):
    vae = DECODERS[name][0]()
    before, scene = random_latents(2, 2, 3), random_latents(5, 2, 3, seed=4)
    alone = streaming_decoder(vae).push(scene)
    expected = torch.cat([*[alone[:, :, :1]] * 3, alone], dim=2)
    for frame_by_frame in (False, True):
        decoder = streaming_decoder(vae)
        push_block(decoder, before)
        blocks = [scene[:, :, :3], scene[:, :, 3:]]
        made = [push_block(decoder, b, i == 0, frame_by_frame=frame_by_frame) for i, b in enumerate(blocks)]
        assert torch.equal(torch.cat(made, dim=2), expected)
    assert not torch.equal(push_block(decoder, scene[:, :, :3]), expected[:, :, :12])
