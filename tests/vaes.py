"""A small random Wan VAE, and inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.wan_vae import WanVAE

SMALL = VAEConfig(encoder_dim=8, decoder_dim=12, num_res_blocks=1)
# With every kind of layer still, and a third of SMALL's time: for renders, where a VAE is only the last stage of many.
TINY = VAEConfig(encoder_dim=4, decoder_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=0)


def random_vae(config: VAEConfig = SMALL, seed: int = 0) -> WanVAE:
    """Random weights and gains, so that no part of the network is neutral."""
    torch.manual_seed(seed)
    vae = WanVAE(config).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            parameter.uniform_(0.5, 2.0)
    return vae


def random_latents(frames: int, height: int = 3, width: int = 5, batch: int = 1, seed: int = 1) -> Tensor:
    """[batch, 16, frames, height, width] in model space."""
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(seed))


def random_video(frames: int, height: int = 24, width: int = 40, batch: int = 1, seed: int = 2) -> Tensor:
    """[batch, 3, frames, height, width] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def stock_vae(dim: int = 8) -> WanVAE:
    """A random VAE as small as a stock ComfyUI still builds: two residual blocks, one width."""
    return random_vae(VAEConfig(encoder_dim=dim, decoder_dim=dim))
