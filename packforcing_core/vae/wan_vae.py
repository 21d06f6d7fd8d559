"""The Wan2.1 VAE: official key names, no state of its own.

The first latent frame of a video is 1 pixel frame and has a call of its own; every other is 4. `at_once` limits how
many frames run through a stage together, and so the memory. With one latent frame per call, results do not depend on
the size of the streamed blocks, bit for bit; larger calls agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..geometry import LATENT_CHANNELS
from ..model.ops import Ops, TorchOps
from .config import TEMPORAL_DOWNSAMPLE, VAEConfig
from .layers import AttentionBlock, Downsample, ResidualBlock, RMSNorm, Upsample, causal_conv
from .state import CausalState

SMALL = 2048
"""Number of latent positions [h * w] up to which frames are decoded in pairs.

Small frames in pairs take little memory, and fewer, larger calls take less time. A larger frame keeps the device busy
alone.
"""
TOGETHER = 4
"""Frames that run together if there is enough memory: those of one latent frame, or as many latent frames."""


class Encoder(nn.Module):
    """Pixel frames [B, 3, 1 or 4 n, H, W] to the 32 channels [B, 32, 1 or n, H/8, W/8] of latent frames."""

    def __init__(self, config: VAEConfig, ops: Ops) -> None:
        super().__init__()
        widths = config.encoder_widths
        self.conv1 = causal_conv(ops, 3, widths[0])
        downsamples = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(widths)):
            downsamples += _residual_blocks(ops, in_dim, out_dim, config.num_res_blocks)
            if stage < len(TEMPORAL_DOWNSAMPLE):
                downsamples.append(Downsample(ops, out_dim, TEMPORAL_DOWNSAMPLE[stage]))
        self.downsamples = nn.Sequential(*downsamples)
        self.middle = _middle(ops, widths[-1])
        self.head = _head(ops, widths[-1], 2 * LATENT_CHANNELS)

    def forward(self, video: Tensor, state: CausalState, at_once: int) -> Tensor:
        # With little memory, the full-resolution stage gets one frame at a time, and the next the two frames that its
        # downsampling merges, so activations of four large frames never exist together.
        first = at_once if at_once >= TOGETHER else 1
        x = torch.cat([self._first_stage(frame, state) for frame in video.split(first, dim=2)], dim=2)
        for stage in stages_of(self.downsamples)[1:]:
            x = torch.cat([_run(stage, piece, state) for piece in x.split(max(2, first), dim=2)], dim=2)
        return _run_head(self.head, _run(self.middle, x, state), state)

    def _first_stage(self, frame: Tensor, state: CausalState) -> Tensor:
        return _run(stages_of(self.downsamples)[0], state.convolve(self.conv1, frame), state)


class Decoder(nn.Module):
    """Latent frames [B, 16, n, h, w] to pixel frames [B, 3, 4 n, 8h, 8w]; the first frame of a video, alone, to one."""

    def __init__(self, config: VAEConfig, ops: Ops) -> None:
        super().__init__()
        widths = config.decoder_widths
        self.conv1 = causal_conv(ops, LATENT_CHANNELS, widths[0])
        self.middle = _middle(ops, widths[0])
        upsamples = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(widths)):
            in_dim = in_dim // 2 if stage else in_dim  # The upsampling before it halved the channels.
            upsamples += _residual_blocks(ops, in_dim, out_dim, config.num_res_blocks + 1)
            if stage < len(TEMPORAL_DOWNSAMPLE):
                upsamples.append(Upsample(ops, out_dim, TEMPORAL_DOWNSAMPLE[-1 - stage]))
        self.upsamples = nn.Sequential(*upsamples)
        self.head = _head(ops, widths[-1], 3)

    def forward(self, latents: Tensor, state: CausalState, at_once: int) -> Tensor:
        x = _run(self.middle, state.convolve(self.conv1, latents), state)
        waiting = [x]
        del x
        return torch.cat(list(self._frames(stages_of(self.upsamples), waiting, state, at_once)), dim=2)

    def _frames(
        self, stages: list[list[nn.Module]], waiting: list[Tensor], state: CausalState, together: int
    ) -> Iterator[Tensor]:
        """The pixel frames of the `waiting` frames, `together` at a time, each group decoded completely before the
        next.

        Depth first, so that at most `together` of the frames that the temporal doublings make exist at full resolution.
        Each frame is taken out of the list, its only owner, so that a stage's input can be freed after use.
        """
        while waiting:
            if not stages:
                yield _run_head(self.head, waiting.pop(0), state)
                continue
            frames = _run(stages[0], waiting.pop(0), state).split(together, dim=2)
            # Pieces of one tensor stay alive until the last is freed; with enough memory that does not matter.
            apart = len(frames) > 1 and together < TOGETHER
            frames = [piece.clone() for piece in frames] if apart else list(frames)
            yield from self._frames(stages[1:], frames, state, together)


def is_small(height: int, width: int) -> bool:
    """Whether the frames of one latent frame [..., height, width] are decoded in pairs."""
    return height * width <= SMALL


class WanVAE(nn.Module):
    """Encoder and decoder with the 1x1x1 convolutions around the latent. Latents here are in the VAE's own scale."""

    def __init__(self, config: VAEConfig, ops: Ops = TorchOps) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.conv1 = ops.Conv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = ops.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(config, ops)

    def encode_frames(self, video: Tensor, state: CausalState, at_once: int = 1) -> Tensor:
        """The first pixel frame of a video [B, 3, 1, H, W], or the next 4 n, to latent frames [B, 16, 1 or n, h, w].

        The result is the mean of the latent distribution, as in Wan.
        """
        mean, _log_variance = self.conv1(self.encoder(video, state, at_once)).chunk(2, dim=1)
        return mean

    def decode_frames(self, latents: Tensor, state: CausalState, at_once: int = 1) -> Tensor:
        """The first latent frame of a video [B, 16, 1, h, w] to its pixel frame, or the next n to 4 n; not clamped."""
        return self.decoder(self.conv2(latents), state, at_once)


def _residual_blocks(ops: Ops, in_dim: int, out_dim: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(ops, out_dim if index else in_dim, out_dim) for index in range(count)]


def _middle(ops: Ops, dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(ops, dim, dim), AttentionBlock(ops, dim), ResidualBlock(ops, dim, dim))


def _head(ops: Ops, dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(ops, dim, axes=3), nn.Identity(), causal_conv(ops, dim, out_dim))


def stages_of(layers: nn.Sequential) -> list[list[nn.Module]]:
    """The layers of each resolution; a stage ends with its resampling layer."""
    stages: list[list[nn.Module]] = [[]]
    for layer in layers:
        stages[-1].append(layer)
        if isinstance(layer, Upsample | Downsample):
            stages.append([])
    return stages


def _run(layers: list[nn.Module] | nn.Sequential, x: Tensor, state: CausalState) -> Tensor:
    for layer in layers:
        x = layer(x, state)
    return x


def _run_head(head: nn.Sequential, x: Tensor, state: CausalState) -> Tensor:
    norm, _, conv = head
    return state.convolve(conv, x, cast("RMSNorm", norm))
