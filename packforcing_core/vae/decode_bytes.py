"""How much memory a streaming decode takes, before it is begun."""

from __future__ import annotations

import sys
from functools import lru_cache

import torch
from torch import nn

from ..geometry import VAE_SPATIAL_STRIDE
from ..model.ops import build_on_meta
from .config import VAEConfig
from .state import lookback
from .wan_vae import TOGETHER, WanVAE, is_small, stages_of

# Full-resolution activations of one frame that exist together at the worst moment, which is a convolution in the last
# stage: the block's input, the normalised input behind its tail of two frames (3), the output, and one for what waits
# at the lower resolutions. A convolution's own workspace, which depends on the device, is not in it.
WORKING_FRAMES = 1 + 3 + 1 + 1
# The same where frames go in pairs: the input behind its tail is 4; and 2 where a kernel loses the layout.
WORKING_FRAMES_OF_SMALL = 2 + 4 + 2 + 1 + 2
# The same where four go together; 4 more wait with twice the channels at half the height and width.
WORKING_FRAMES_TOGETHER = 4 + 6 + 4 + 4
# Before Python 3.11 a caller holds what it handed to a call until that returns: a stage's input, as many frames as go
# together, lives longer there.
HELD_BY_CALLS = 1 if sys.version_info < (3, 11) else 0
# Four go together on a GPU where what they take more is at most this part of its memory: from 16 GB on at 832x480.
ROOM = 1 / 12
FLOAT_BYTES = 4


def state_bytes(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that a StreamingDecoder holds between pushes, exactly, for one video of height x width pixels."""
    positions = (height // VAE_SPATIAL_STRIDE) * (width // VAE_SPATIAL_STRIDE)
    return _state_per_position(config) * positions * dtype.itemsize


@lru_cache(maxsize=16)
def _state_per_position(config: VAEConfig) -> int:
    """Numbers that the tails of a decoder hold for each latent position: each convolution's at its own resolution."""
    decoder = build_on_meta(lambda: WanVAE(config)).decoder
    stages: list[list[nn.Module]] = stages_of(decoder.upsamples)
    stages[0] += [decoder.conv1, decoder.middle]
    stages[-1].append(decoder.head)
    return sum(
        conv.in_channels * lookback(conv) * 4**stage
        for stage, parts in enumerate(stages)
        for part in parts
        for conv in part.modules()
        if isinstance(conv, nn.Conv3d)
    )


@lru_cache(maxsize=16)
def weight_bytes(config: VAEConfig, dtype: torch.dtype) -> int:
    """Bytes of a VAE's weights."""
    return dtype.itemsize * sum(weight.numel() for weight in build_on_meta(lambda: WanVAE(config)).parameters())


def frames_at_once(config: VAEConfig, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many frames a decoder puts through a stage together, for latents of rows x columns. A matter of the sizes and
    the device alone, so that a video that is resumed comes out the same.
    """
    if device.type == "cuda":
        more = (WORKING_FRAMES_TOGETHER - WORKING_FRAMES) * _frame_bytes(config, rows, columns, dtype)
        return TOGETHER if more <= ROOM * torch.cuda.get_device_properties(device).total_memory else 1
    return 2 if is_small(rows, columns) else 1


def _frame_bytes(config: VAEConfig, rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes of a frame's activation at full resolution."""
    width = config.decoder_dim * config.dim_mult[0]
    return width * rows * columns * VAE_SPATIAL_STRIDE**2 * dtype.itemsize


def decode_bytes(
    config: VAEConfig, height: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> int:
    """Bytes at the worst moment of a push, whatever its length, for one video of height x width pixels on `device`.

    The state and the activations; weights and the finished float32 frames (12 bytes a pixel) come on top.
    """
    rows, columns = height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE
    at_once = frames_at_once(config, rows, columns, dtype, torch.device(device))
    working = {1: WORKING_FRAMES, 2: WORKING_FRAMES_OF_SMALL, TOGETHER: WORKING_FRAMES_TOGETHER}[at_once]
    working += at_once * HELD_BY_CALLS
    return state_bytes(config, height, width, dtype) + working * _frame_bytes(config, rows, columns, dtype)


def vae_bytes(
    config: VAEConfig, height: int, width: int, frames: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> int:
    """All that a VAE takes on its device while it decodes `frames` pixel frames a push: weights, the worst moment of a
    push, and the finished frames in float32.
    """
    finished = 3 * FLOAT_BYTES * height * width * frames
    return weight_bytes(config, dtype) + decode_bytes(config, height, width, dtype, device) + finished
