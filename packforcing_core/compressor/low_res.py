"""The branch without trained weights: a block's frames, scaled down and encoded again as a short clip.

It has no state: the result depends only on the block's own frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PackForcingError
from ..geometry import (
    COMPRESSED_TIME,
    PIXEL_FRAMES_PER_LATENT,
    SIZE_MULTIPLE,
    VAE_SPATIAL_STRIDE,
    compressed_grid,
    pixel_frames,
)

# Encodes a whole video [B, 3, 1 + 4k, H, W] in [-1, 1] into latents [B, 16, 1 + k, H/8, W/8] in model space, like
# `vae.streaming.encode`.
Encode = Callable[[Tensor], Tensor]


def block_video_shape(latent_shape: torch.Size, first_block: bool) -> tuple[int, ...]:
    """[B, 3, T', 8h, 8w]: the shape of the frames decoded from a block of latents [B, 16, T, h, w]. T' is 4T, or 4T - 3
    at the start of a video.
    """
    batch, _, frames, height, width = latent_shape
    count = pixel_frames(frames) if first_block else PIXEL_FRAMES_PER_LATENT * frames
    return (batch, 3, count, VAE_SPATIAL_STRIDE * height, VAE_SPATIAL_STRIDE * width)


def low_res_latents(encode: Encode, video: Tensor, latent_shape: torch.Size, first_block: bool) -> Tensor:
    """A block's frames as small latents [B, 16, g_t, 2 g_h, 2 g_w], one patch per cell of the grid.

    `video` [B, 3, T', 8h, 8w] in [-1, 1] is what latents of `latent_shape` [B, 16, T, h, w] decode to in the stream.
    Raises PackForcingError if it has another shape.
    """
    _require_shape(video, block_video_shape(latent_shape, first_block))
    return encode(low_res_clip(video, latent_shape, first_block))[:, :, 1:]


def low_res_clip(video: Tensor, latent_shape: torch.Size, first_block: bool) -> Tensor:
    """The clip [B, 3, 1 + 4 g_t, 16 g_h, 16 g_w] that is encoded, float32.

    Frames are resized by area, padded to 8 g_t frames (at the front for a video's first block, else at the end) and
    averaged in pairs. Then the first is repeated in front, because the VAE's first latent frame holds a single pixel
    frame; it is dropped after encoding. Resizing commutes with the other steps; it comes first so that no large frames
    are copied.
    """
    times, rows, columns = compressed_grid(*latent_shape[2:])
    missing = COMPRESSED_TIME * PIXEL_FRAMES_PER_LATENT * times - video.shape[2]
    size = (video.shape[2], SIZE_MULTIPLE * rows, SIZE_MULTIPLE * columns)
    small = F.interpolate(video.float(), size=size, mode="area")
    padded = _repeat_first(small, missing) if first_block else _repeat_last(small, missing)
    return _repeat_first(padded.unflatten(2, (-1, COMPRESSED_TIME)).mean(dim=3), 1)


def _repeat_first(video: Tensor, times: int) -> Tensor:
    return torch.cat((video[:, :, :1].expand(-1, -1, times, -1, -1), video), dim=2)


def _repeat_last(video: Tensor, times: int) -> Tensor:
    return torch.cat((video, video[:, :, -1:].expand(-1, -1, times, -1, -1)), dim=2)


def _require_shape(video: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(video.shape) != expected:
        raise PackForcingError(
            f"Got frames of shape {list(video.shape)} for the low-resolution branch of the compressor; expected "
            f"{list(expected)} ([B, 3, frames, height, width]): exactly the frames that the block decodes to in its "
            "place of the video."
        )
