"""The VAE's training: it learns, its passes are those of streaming, and calibration changes no picture."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.laboratory.training.clips import draw_clips
from packforcing_core.laboratory.training.learner import Optimisation
from packforcing_core.laboratory.training.vae import (
    Phase,
    VAEStage,
    calibrate,
    decode_clip,
    encode_clip,
    fused_norm_silu,
    initialise,
    norm_silu,
)
from packforcing_core.model.ops import TorchOps
from packforcing_core.vae.config import VAEConfig, normalise, unnormalise
from packforcing_core.vae.layers import RMSNorm
from packforcing_core.vae.streaming import decode, encode
from packforcing_core.vae.wan_vae import WanVAE
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.small_training import held_out_loss, learn


def small_vae() -> WanVAE:
    network = WanVAE(VAEConfig(8, 8, num_res_blocks=1))
    initialise(network, seed=1)
    with torch.no_grad():
        for parameter in network.parameters():  # away from the identity that it begins as
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return network.requires_grad_(False)


def small_clip(frames: int = 9) -> torch.Tensor:
    return draw_clips(0, 0, range(1), frames).video[..., 16:48, 32:80].contiguous()


def test_a_short_run_lowers_the_loss():
    network = WanVAE(VAEConfig(8, 8, num_res_blocks=1))
    initialise(network, seed=1)
    optimisation = Optimisation(4e-3, warmup=0, final_rate=1.0)
    stage = VAEStage(network, (Phase(2000, 1, 4),), optimisation, seed=0, precision=torch.float32)
    with torch.no_grad():
        before = held_out_loss(stage)
    learn(stage, 20)
    with torch.no_grad():
        after = held_out_loss(stage)
    print(f"held out {before:.3f} -> {after:.3f}")
    assert after < 0.7 * before


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_a_clip_in_two_calls_equals_streaming_it(frames):
    network, video = small_vae(), small_clip(frames)
    latents = normalise(encode_clip(network, video)[0])
    encoded = steps_off(latents, encode(network, video))
    pictures = decode_clip(network, unnormalise(latents)).clamp(-1, 1)
    decoded = steps_off(pictures, decode(network, latents))
    print(f"{frames} frames: latents {encoded:.1f} rounding steps apart, pictures {decoded:.1f}")
    assert max(encoded, decoded) < DEEP


def test_calibrated_latents_are_normalised_and_pictures_stay():
    network, video = small_vae(), small_clip(13)
    before = decode_clip(network, encode_clip(network, video)[0])
    calibrate(network, seed=5, clips=2, frames=9)
    off = steps_off(decode_clip(network, encode_clip(network, video)[0]), before)
    latents = torch.cat([normalise(encode_clip(network, draw_clips(5, i, range(1), 9).video)[0]) for i in range(2)])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    print(f"pictures {off:.0f} rounding steps apart; means {mean.abs().max():.1e}; deviations {std.min():.3f}..")
    assert off < 4 * DEEP  # Twice through both halves, with other numbers between them.
    assert mean.abs().max() < 1e-3
    assert (std - 1).abs().max() < 1e-3


def test_the_norm_is_that_of_the_network():
    x, norm = torch.randn(1, 8, 3, 4, 5, generator=torch.Generator().manual_seed(0)), RMSNorm(TorchOps, 8, axes=3)
    with torch.no_grad():
        norm.gamma += torch.randn(norm.gamma.shape, generator=torch.Generator().manual_seed(1))
    off = steps_off(norm_silu(x, norm.gamma), torch.nn.functional.silu(norm(x)))
    print(f"{off:.1f} rounding steps apart")
    assert off < SHALLOW


def test_without_a_compiler_the_plain_norm_is_used(monkeypatch):
    def broken(function, **_):
        def run(*_):
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        assert fused_norm_silu() is norm_silu


def test_a_clip_depends_on_its_seed_step_and_index_alone():
    together, alone = draw_clips(3, 4, range(3), 2), draw_clips(3, 4, [2], 2)
    assert torch.equal(together.video[2:], alone.video)
    assert together.prompts[2] == alone.prompts[0]
    others = [draw_clips(*key, [2], 2).video for key in ((3, 5), (4, 4))]
    assert not any(torch.equal(other, alone.video) for other in others)
