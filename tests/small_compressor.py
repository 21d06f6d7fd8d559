"""Small parts for tests around the compressor: a narrow VAE, a block's frames, a branch that was trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from packforcing_core.compressor.high_res import Fusion, HighRes, build_high_res
from packforcing_core.compressor.low_res import block_video_shape
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.streaming import encode
from packforcing_core.vae.wan_vae import WanVAE
from tests.small import CONFIG


def small_encode() -> Callable[[Tensor], Tensor]:
    """The whole encoder of a Wan VAE, four channels wide, with random weights."""
    torch.manual_seed(3)
    return partial(encode, WanVAE(VAEConfig(encoder_dim=4, decoder_dim=4, num_res_blocks=1)).requires_grad_(False))


def random_latents(frames: int, height: int, width: int, batch: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(seed))


def random_video(latents: Tensor, first_block: bool = False, seed: int = 6) -> Tensor:
    """Noise in [-1, 1] in the shape of the frames that `latents` decode to."""
    shape = block_video_shape(latents.shape, first_block)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trained_high_res(dim: int = CONFIG.dim, fusion: Fusion = "add") -> HighRes:
    """A branch none of whose weights is where it starts."""
    branch, generator = build_high_res(dim, seed=8, fusion=fusion), torch.Generator().manual_seed(9)
    with torch.no_grad():
        branch.layers[-1].weight.normal_(std=0.1, generator=generator)
        if fusion == "concat":
            branch.gate.normal_(generator=generator)
            branch.join.weight.normal_(std=0.1, generator=generator)
            branch.join.bias.normal_(std=0.1, generator=generator)
    return branch
