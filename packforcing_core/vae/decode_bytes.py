"""Memory of a streaming decode, computed before it starts."""

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

# Full-resolution activations of one frame that exist at the peak, which is at a convolution in the last stage: the
# block's input, the normalised input after its two cached frames (3), the output, and one for frames that wait at lower
# resolutions. A convolution's own workspace depends on the device and is not included.
WORKING_FRAMES = 1 + 3 + 1 + 1
# The same for frames in pairs: the input with its cached frames is 4; plus 2 where a kernel loses the memory layout.
WORKING_FRAMES_OF_SMALL = 2 + 4 + 2 + 1 + 2
# The same for four frames together; 4 more wait, with twice the channels at half the height and width.
WORKING_FRAMES_TOGETHER = 4 + 6 + 4 + 4
# Before Python 3.11 a caller holds its arguments until the call returns, so a stage's input lives longer there, and
# with four frames together the input of a block in it, too. Extra frames, by how many run together.
HELD_BY_CALLS = {1: 1, 2: 2, TOGETHER: 2 * TOGETHER} if sys.version_info < (3, 11) else {}
# Four frames run together on a GPU if the extra memory is at most this share of its memory: from 11.04 GB on at 832x480
# in 16 bits.
ROOM = 1 / 12
FLOAT_BYTES = 4


def state_bytes(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Exact bytes that a StreamingDecoder holds between pushes, for one video of height x width pixels."""
    positions = (height // VAE_SPATIAL_STRIDE) * (width // VAE_SPATIAL_STRIDE)
    return _state_per_position(config) * positions * dtype.itemsize


@lru_cache(maxsize=16)
def _state_per_position(config: VAEConfig) -> int:
    """Values per latent position in a decoder's cached frames, each convolution at its own resolution."""
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


def vram_of(device: torch.device) -> int:
    """All memory of a CUDA device in bytes; 0 for any other device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def frames_at_once(
    config: VAEConfig, rows: int, columns: int, dtype: torch.dtype, device: torch.device, vram: int | None = None
) -> int:
    """How many frames a decoder runs through a stage together, for latents of rows x columns. It depends only on sizes
    and device, so a resumed video comes out the same. `vram` plans for a GPU with so many bytes instead of `device`.
    """
    memory = vram_of(device) if vram is None else vram
    if memory:
        more = (WORKING_FRAMES_TOGETHER - WORKING_FRAMES) * _frame_bytes(config, rows, columns, dtype)
        return TOGETHER if more <= ROOM * memory else 1
    return 2 if is_small(rows, columns) else 1


def _frame_bytes(config: VAEConfig, rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes of one frame's activation at full resolution."""
    width = config.decoder_dim * config.dim_mult[0]
    return width * rows * columns * VAE_SPATIAL_STRIDE**2 * dtype.itemsize


def decode_bytes(
    config: VAEConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    vram: int | None = None,
) -> int:
    """Peak bytes of a push of any length, for one video of height x width pixels on `device`, or on a GPU with `vram`
    bytes.

    Includes the state and the activations; weights and the finished float32 frames (12 bytes per pixel) are extra.
    """
    rows, columns = height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE
    at_once = frames_at_once(config, rows, columns, dtype, torch.device(device), vram)
    working = {1: WORKING_FRAMES, 2: WORKING_FRAMES_OF_SMALL, TOGETHER: WORKING_FRAMES_TOGETHER}[at_once]
    working += HELD_BY_CALLS.get(at_once, 0)
    return state_bytes(config, height, width, dtype) + working * _frame_bytes(config, rows, columns, dtype)


def vae_bytes(
    config: VAEConfig,
    height: int,
    width: int,
    frames: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    vram: int | None = None,
) -> int:
    """All memory of a VAE on its device (or on a GPU with `vram` bytes) when each push decodes `frames` pixel frames:
    weights, the peak of a push, and the finished frames in float32.
    """
    finished = 3 * FLOAT_BYTES * height * width * frames
    return weight_bytes(config, dtype) + decode_bytes(config, height, width, dtype, device, vram) + finished
