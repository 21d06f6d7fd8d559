"""The streaming decoder of whatever can decode Wan2.1's latents."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .decode_bytes import decode_bytes
from .streaming import StreamingDecoder
from .tiny import TinyDecoder, TinyVAE, tiny_decode_bytes
from .wan_vae import WanVAE


class Decoder(Protocol):
    """Decodes the blocks of one video in order: latents [1, 16, T, h, w] -> video [1, 3, T', H, W] in -1..1."""

    def push(self, latents: Tensor) -> Tensor: ...


def streaming_decoder(vae: WanVAE | TinyVAE) -> StreamingDecoder | TinyDecoder:
    """Decodes the blocks of one video in order."""
    return TinyDecoder(vae) if isinstance(vae, TinyVAE) else StreamingDecoder(vae)


def decoder_bytes(
    vae: WanVAE | TinyVAE, height: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> int:
    """Bytes at the peak of a push for one video of height x width pixels on `device`, besides the weights."""
    if isinstance(vae, TinyVAE):
        return tiny_decode_bytes(vae, height, width, dtype)
    return decode_bytes(vae.config, height, width, dtype, device)
