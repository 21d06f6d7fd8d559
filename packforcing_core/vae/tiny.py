"""Decoders of tiny video autoencoders (TAEHV) with Wan2.1's 16 latent channels: taew2_1, lighttaew2_1.

They consist of 2-D convolutions. Their blocks also see the previous frame, and two of the stages double the frames.
Layer numbers are those in the files' key names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import PackForcingError
from ..geometry import LATENT_CHANNELS, PIXEL_FRAMES_PER_LATENT
from ..model.ops import Ops, TorchOps, build_on_meta
from .config import unnormalise

# Of a Wan2.1 TAE: the layers where a width starts, and how many frames each stage makes of one.
WIDTH_KEYS = tuple(f"decoder.{number}.weight" for number in (1, 8, 14, 20))
STAGE_FRAMES = (1, 2, 2)
LAST_BIAS = "decoder.22.bias"
# Full-resolution activations of one frame that exist together: a block's two inputs, their concatenation (2), and its
# output, for the four pixel frames of a latent frame.
WORKING_FRAMES = 4 * (1 + 1 + 2 + 1)


class MemBlock(nn.Module):
    """Three convolutions over the current frame and the previous one, added to the current one."""

    def __init__(self, width: int, ops: Ops):
        super().__init__()
        first = ops.Conv2d(2 * width, width, 3, padding=1)
        rest = (ops.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv = nn.Sequential(first, nn.ReLU(), next(rest), nn.ReLU(), next(rest))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """[T, C, H, W] and, for each frame, the previous one."""
        return torch.relu(self.conv(torch.cat((x, before), dim=1)) + x)


class TimeGrow(nn.Module):
    """Each frame of [T, C, H, W] becomes `frames` frames: [frames T, C, H, W]."""

    def __init__(self, width: int, frames: int, ops: Ops):
        super().__init__()
        self.frames = frames
        self.conv = ops.Conv2d(width, frames * width, 1, bias=False)
        self._width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, self._width, *x.shape[2:])


class SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TinyVAE(nn.Module):
    """The decoder. With `raw_latents` it reads latents in the VAE's own scale (lighttaew2_1), otherwise in model space
    (taew2_1).
    """

    def __init__(self, widths: tuple[int, ...], raw_latents: bool, ops: Ops = TorchOps):
        super().__init__()
        self.widths, self.raw_latents = widths, raw_latents
        layers = [SoftClamp(), ops.Conv2d(LATENT_CHANNELS, widths[0], 3, padding=1), nn.ReLU()]
        for width, following, frames in zip(widths, widths[1:], STAGE_FRAMES, strict=False):
            layers += [MemBlock(width, ops) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), TimeGrow(width, frames, ops)]
            layers += [ops.Conv2d(width, following, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), ops.Conv2d(widths[-1], 3, 3, padding=1))


class TinyDecoder:
    """Latent frames in, pixel frames out, with `push` and `reset` as in `StreamingDecoder`."""

    def __init__(self, vae: TinyVAE):
        self.vae = vae
        self._like = next(vae.parameters())
        self._before: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self._like.device

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """[1, 16, T, h, w] in model space -> [1, 3, 4T, 8h, 8w] in [-1, 1], 4T - 3 frames the first time."""
        if latents.ndim != 5 or latents.shape[:2] != (1, LATENT_CHANNELS):
            raise PackForcingError(f"Got latents of shape {list(latents.shape)}; expected [1, 16, T, height, width].")
        latents = latents.to(self._like.device)
        own = (unnormalise(latents) if self.vae.raw_latents else latents).to(self._like.dtype)
        frames = [self._decoded(frame.transpose(1, 2)[0]) for frame in own.split(1, dim=2)]
        return torch.cat(frames).float().mul_(2).sub_(1).clamp_(-1, 1).transpose(0, 1)[None]

    def _decoded(self, x: Tensor) -> Tensor:
        """One latent frame [1, 16, h, w] -> its pixel frames [4, 3, 8h, 8w] in 0..1; for a video's first frame only
        one.
        """
        first = not self._before
        for name, layer in self.vae.decoder.named_children():
            if isinstance(layer, MemBlock):
                before = torch.cat((self._before.get(name, torch.zeros_like(x[:1])), x[:-1]))
                self._before[name] = x[-1:].clone()
                x = layer(x, before)
            else:
                x = layer(x)
        return x[PIXEL_FRAMES_PER_LATENT - 1 :] if first else x

    def reset(self) -> None:
        """Clears the state: the next push starts another video."""
        self._before = {}


def is_tiny(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a TAEHV."""
    return LAST_BIAS in state_dict


def load_tiny(
    state_dict: Mapping[str, Tensor],
    raw_latents: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TinyVAE:
    """The decoder with a TAEHV's weights. Raises PackForcingError for another video model or another layout."""
    own = {name: tensor for name, tensor in state_dict.items() if name.startswith("decoder.")}
    missing = [name for name in WIDTH_KEYS if name not in own]
    channels = 0 if missing else own[WIDTH_KEYS[0]].shape[1]
    if channels != LATENT_CHANNELS:
        raise PackForcingError(
            f"Got a tiny autoencoder for video with {channels} latent channels; expected one for Wan2.1, with "
            f"{LATENT_CHANNELS}: taew2_1 or lighttaew2_1."
        )
    widths = tuple(own[name].shape[0] for name in WIDTH_KEYS)
    vae = build_on_meta(lambda: TinyVAE(widths, raw_latents))
    expected = vae.state_dict()
    wrong = sorted(set(expected) ^ set(own)) + [n for n in expected if n in own and own[n].shape != expected[n].shape]
    if wrong:
        raise PackForcingError(f"The tiny autoencoder does not fit: {', '.join(wrong[:3])}; expected Wan2.1's layout.")
    vae.load_state_dict({n: t.detach().to(device=device, dtype=dtype) for n, t in own.items()}, assign=True)
    return vae.requires_grad_(False).eval()


def tiny_decode_bytes(vae: TinyVAE, height: int, width: int, dtype: torch.dtype) -> int:
    """An estimate of the peak bytes of a push, which is in the last stage; weights are extra."""
    return WORKING_FRAMES * vae.widths[-1] * height * width * dtype.itemsize
