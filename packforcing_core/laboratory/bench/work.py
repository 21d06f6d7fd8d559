"""Arithmetic of a block: operations of the transformer and the decoder, to compute the share of a device's peak speed.

A multiply-add counts as 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...geometry import LATENT_CHANNELS, VAE_SPATIAL_STRIDE
from ...model.config import WanConfig
from ...model.ops import build_on_meta
from ...vae.config import VAEConfig
from ...vae.state import CausalState
from ...vae.wan_vae import WanVAE


class Work(NamedTuple):
    """Operations of a part, by kind of kernel."""

    linear: float = 0.0
    attention: float = 0.0
    conv: float = 0.0

    def plus(self, other: Work, times: int = 1) -> Work:
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))

    def floor_seconds(self, rates: dict[str, float]) -> float:
        """The minimum time at `rates` operations per second, one rate per kind."""
        return sum(amount / rates[kind] for kind, amount in self._asdict().items() if amount)


def pass_work(config: WanConfig, tokens: int, attended: int, layers: int | None = None) -> Work:
    """One pass of `tokens` tokens that attend to `attended` tokens: 15.6 and 32.7 TFLOP for a full block of the 1.3B at
    832x480. `layers` limits it to the first layers.
    """
    layers = config.num_layers if layers is None else layers
    dim = config.dim
    weights = 6 * dim * dim + 2 * dim * config.ffn_dim  # q, k, v, o; cross q, o; feed-forward
    attention = 4 * tokens * (attended + config.text_len) * dim
    return Work(linear=2.0 * tokens * weights * layers, attention=float(attention * layers))


def commit_work(config: WanConfig, tokens: int, attended: int) -> Work:
    """A commit: the last layer computes q, k and v only."""
    before = pass_work(config, tokens, attended, config.num_layers - 1)
    return before.plus(Work(linear=2.0 * tokens * 3 * config.dim**2))


def decode_work(config: VAEConfig, height: int, width: int, latent_frames: int) -> Work:
    """Decoding `latent_frames` latent frames after a video's first, counted on the meta device (a few seconds)."""
    vae = build_on_meta(lambda: WanVAE(config))
    size = (height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE)
    latent = torch.empty(1, LATENT_CHANNELS, 1, *size, device="meta")
    state = CausalState()
    with torch.no_grad():
        vae.decode_frames(latent, state)
        with FlopCounterMode(display=False) as counter:
            vae.decode_frames(latent, state)
    return Work(conv=float(counter.get_total_flops() * latent_frames))
