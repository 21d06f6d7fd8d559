"""The sizes of a Wan2.1 VAE, read from its tensors, and the statistics of its latents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..geometry import LATENT_CHANNELS
from ..queued import to_device

# Per channel, over Wan's training data; the transformer works on (latent - mean) / std.
# Source: Wan2.1, wan/modules/vae.py.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# Which of the encoder's three downsamplings also halve time; the decoder's upsamplings are in reverse order.
TEMPORAL_DOWNSAMPLE = (False, True, True)

EXPECTED = "expected a Wan2.1 VAE (16 channels, for example wan_2.1_vae.safetensors, or a narrower LightVAE)"

# The first key that is found identifies the file; more specific keys come first.
FOREIGN_KEYS = {
    "decoder.upsamples.0.upsamples.0.residual.2.weight": "the Wan2.2 VAE (48 channels)",
    "decoder.mid_block.resnets.0.norm1.gamma": "a Wan VAE with the key names of diffusers",
    "decoder.22.bias": "a tiny autoencoder for video (TAEHV, such as taew2_1)",
    "decoder.1.weight": "a tiny autoencoder (TAESD or TAEHV)",
    "decoder.mid.block_1.conv1.weight": "an image VAE (Stable Diffusion or Flux)",
    "decoder.mid.block_1.conv1.conv.weight": "the VAE of another video model (Hunyuan)",
    "decoder.mid_block.resnets.0.conv1.weight": "an image VAE with the key names of diffusers",
    "decoder.mid_block.resnets.0.conv1.conv.weight": "the VAE of another video model (diffusers key names)",
    "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": "the VAE of another video model (LTX)",
    "patch_embedding.weight": "a Wan transformer",
}

SIZE_KEYS = ("encoder.conv1.weight", "conv2.weight", "decoder.conv1.weight", "decoder.head.0.gamma")


class Shaped(Protocol):
    """A tensor, or its entry in a file's header."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the network: `*_dim` is the number of channels at full resolution, `dim_mult` the factor of each stage.

    A stage has `num_res_blocks` residual blocks in the encoder and one more in the decoder.
    """

    encoder_dim: int = 96
    decoder_dim: int = 96
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2

    def __post_init__(self) -> None:
        if len(self.dim_mult) != len(TEMPORAL_DOWNSAMPLE) + 1:
            raise PackForcingError(f"Got {len(self.dim_mult)} resolutions, {self.dim_mult}; a Wan VAE has 4.")

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Shaped]) -> VAEConfig:
        """Sizes from official key names. Raises PackForcingError for a VAE of another family."""
        _refuse_foreign(state_dict)
        width = state_dict["encoder.conv1.weight"].shape[0]
        samplers = sorted(
            int(match.group(1))
            for match in (re.fullmatch(r"encoder\.downsamples\.(\d+)\.resample\.1\.weight", k) for k in state_dict)
            if match
        )
        if len(samplers) != len(TEMPORAL_DOWNSAMPLE):
            raise PackForcingError(
                f"Got an encoder that halves its size {len(samplers)} times; {EXPECTED}, which does so 3 times."
            )
        last = f"encoder.downsamples.{samplers[-1] + 1}.residual.2.weight"
        widths = [state_dict[f"encoder.downsamples.{i}.resample.1.weight"].shape[0] for i in samplers]
        widths.append(state_dict[last].shape[0] if last in state_dict else widths[-1])
        return cls(
            encoder_dim=width,
            decoder_dim=state_dict["decoder.head.0.gamma"].shape[0],
            dim_mult=tuple(stage // width for stage in widths),
            num_res_blocks=samplers[0],
        )

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels after `encoder.conv1` and after each stage."""
        return tuple(self.encoder_dim * mult for mult in (1, *self.dim_mult))

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels after `decoder.conv1` and after each stage's residual blocks."""
        return tuple(self.decoder_dim * mult for mult in (self.dim_mult[-1], *reversed(self.dim_mult)))


def _refuse_foreign(state_dict: Mapping[str, Shaped]) -> None:
    kind = next((kind for key, kind in FOREIGN_KEYS.items() if key in state_dict), None)
    if kind:
        raise PackForcingError(f"Got {kind}; {EXPECTED}.")
    missing = [key for key in SIZE_KEYS if key not in state_dict]
    if missing:
        some = ", ".join(list(state_dict)[:3]) or "nothing"
        raise PackForcingError(f"Not a Wan VAE: no {', '.join(missing)} (the file has {some} ...); {EXPECTED}.")
    latent = state_dict["conv2.weight"].shape[0]
    if latent != LATENT_CHANNELS:
        raise PackForcingError(f"Got a VAE with {latent} latent channels; {EXPECTED}.")
    colours = state_dict["encoder.conv1.weight"].shape[1]
    if colours != 3:
        raise PackForcingError(f"Got a Wan VAE with {colours} image channels; {EXPECTED}, with 3 (RGB).")


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return to_device(torch.tensor(values, dtype=torch.float32), like.device).view(1, -1, 1, 1, 1)


def normalise(latents: Tensor) -> Tensor:
    """The VAE's own latents [B, 16, T, h, w] to model space, in float32."""
    return (latents.float() - _per_channel(LATENT_MEAN, latents)) / _per_channel(LATENT_STD, latents)


def unnormalise(latents: Tensor) -> Tensor:
    """Latents in model space [B, 16, T, h, w] to the VAE's own, in float32."""
    return latents.float() * _per_channel(LATENT_STD, latents) + _per_channel(LATENT_MEAN, latents)
