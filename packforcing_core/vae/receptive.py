"""How many earlier latent frames a fresh decoder needs to decode a block bit for bit.

The decoders have no feedback, only layers that look back a fixed number of frames, so their state depends only on the
newest latent frames. A decoder that starts in the middle of a video treats its first frame as the video's first, with
zeros before it. The layers are walked here to find the first frame that is not affected by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ..geometry import PIXEL_FRAMES_PER_LATENT
from .decoders import Decoder
from .layers import Upsample
from .state import lookback
from .tiny import MemBlock, TimeGrow, TinyVAE
from .wan_vae import WanVAE


def frames_looked_back(vae: WanVAE | TinyVAE) -> int:
    """Latent frames that must be decoded before the first one with exact pixel frames: 38 for the Wan VAE.

    `first` is the first exact frame after a layer, counted from the first frame that is pushed, at that layer's rate.
    """
    first = _behind_tiny(vae) if isinstance(vae, TinyVAE) else _behind_wan(vae)
    return -(-first // PIXEL_FRAMES_PER_LATENT)


def _behind_wan(vae: WanVAE) -> int:
    first = 0
    for layer in _in_order(vae.decoder):
        if isinstance(layer, Upsample):
            if layer.time_conv is not None:  # The first frame skips it and is not part of its history.
                first = 2 * (max(first, 1) + lookback(layer.time_conv))
        else:
            first += lookback(layer)
    return first


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """Upsamplings and 3-D convolutions in the order in which they run, which is the order of construction."""
    for child in module.children():
        if isinstance(child, Upsample | nn.Conv3d):
            yield child
        else:
            yield from _in_order(child)


def _behind_tiny(vae: TinyVAE) -> int:
    first = 0
    for layer in vae.decoder:
        if isinstance(layer, MemBlock):
            first += 1
        elif isinstance(layer, TimeGrow):
            first *= layer.frames
    return first


def warm_up(decoder: Decoder, before: Sequence[Tensor]) -> None:
    """Brings a fresh decoder to the state after the latents `before` [1, 16, T, h, w] each: the whole video so far, or
    at least its last `frames_looked_back` frames.
    """
    for latents in before:
        decoder.push(latents)
