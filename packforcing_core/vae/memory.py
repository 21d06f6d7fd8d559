"""How much memory a streaming decode takes, before it is begun."""

from __future__ import annotations

import torch

from ..geometry import LATENT_CHANNELS, VAE_SPATIAL_STRIDE
from ..model.ops import build_on_meta
from .config import VAEConfig
from .state import CausalState
from .wan_vae import WanVAE, is_small

# Full-resolution activations of one frame that exist together at the worst moment, which is a convolution in the last
# stage: the block's input, the normalised input behind its tail of two frames (3), the output, and one for what waits
# at the lower resolutions. A convolution's own workspace, which depends on the device, is not in it.
WORKING_FRAMES = 1 + 3 + 1 + 1
# The same where frames go in pairs: the input behind its tail is 4; and 2 where a kernel loses the layout.
WORKING_FRAMES_OF_SMALL = 2 + 4 + 2 + 1 + 2


def state_bytes(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that a StreamingDecoder holds between pushes, exactly, for one video of height x width pixels.

    Found by decoding two latent frames on the meta device, which computes shapes only.
    """
    vae = build_on_meta(lambda: WanVAE(config)).to(dtype)
    size = (height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE)
    state = CausalState()
    latent = torch.empty(1, LATENT_CHANNELS, 1, *size, dtype=dtype, device="meta")
    with torch.no_grad():
        for _ in range(2):
            vae.decode_frame(latent, state)
    return sum(tail.nbytes for tail in state.tails.values())


def decode_bytes(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes at the worst moment of a push, whatever its length, for one video of height x width pixels.

    The state and the activations; weights and the finished float32 frames (12 bytes a pixel) come on top.
    """
    frame = config.decoder_dim * config.dim_mult[0] * height * width * dtype.itemsize
    small = is_small(height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE)
    return state_bytes(config, height, width, dtype) + (WORKING_FRAMES_OF_SMALL if small else WORKING_FRAMES) * frame
