"""The streaming decoder for any VAE that decodes Wan2.1 latents."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..geometry import PIXEL_FRAMES_PER_LATENT
from .decode_bytes import decode_bytes
from .streaming import StreamingDecoder
from .tiny import TinyDecoder, TinyVAE, tiny_decode_bytes
from .wan_vae import WanVAE

HELD_FRAMES = PIXEL_FRAMES_PER_LATENT - 1
"""Copies of its first pixel frame in front of a scene behind a cut: a block there has as many frames as any other."""


class Decoder(Protocol):
    """Decodes the blocks of one video in order: latents [1, 16, T, h, w] -> video [1, 3, T', H, W] in -1..1; behind
    `reset` those of another one.
    """

    def push(self, latents: Tensor) -> Tensor: ...

    def reset(self) -> None: ...


def push_block(decoder: Decoder, latents: Tensor, behind_cut: bool = False, *, frame_by_frame: bool = False) -> Tensor:
    """The video [1, 3, 4T, H, W] of the next block, 4T - 3 frames the first time; `frame_by_frame` goes to the host
    meanwhile, which gives the same frames.

    A scene `behind_cut` is decoded as a video of its own, or the decoder would mix the scene before into its first
    frames. Its first latent frame is then one pixel frame, which is held for four.
    """
    if behind_cut:
        decoder.reset()
    if frame_by_frame:
        video = torch.cat([decoder.push(frame).cpu() for frame in latents.split(1, dim=2)], dim=2)
    else:
        video = decoder.push(latents)
    return torch.cat([*[video[:, :, :1]] * HELD_FRAMES, video], dim=2) if behind_cut else video


def streaming_decoder(vae: WanVAE | TinyVAE) -> StreamingDecoder | TinyDecoder:
    """Decodes the blocks of one video in order."""
    return TinyDecoder(vae) if isinstance(vae, TinyVAE) else StreamingDecoder(vae)


def decoder_bytes(
    vae: WanVAE | TinyVAE, height: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> int:
    """Peak bytes of a push for one video of height x width pixels on `device`, without the weights."""
    if isinstance(vae, TinyVAE):
        return tiny_decode_bytes(vae, height, width, dtype)
    return decode_bytes(vae.config, height, width, dtype, device)
