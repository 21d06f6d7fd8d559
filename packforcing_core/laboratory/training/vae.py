"""Trains a Wan VAE: on images first, then on increasingly long clips.

The temporal convolutions start as the identity, so that what was learnt on images carries over to clips. The passes
here process a whole clip in two calls (its first frame, and the others), which equals streaming and is faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...vae.config import LATENT_MEAN, LATENT_STD
from ...vae.layers import Downsample, ResidualBlock, RMSNorm, Upsample
from ...vae.state import CausalState, memory_format
from ...vae.wan_vae import WanVAE
from .clips import draw_clips
from .learner import Optimisation
from .loop import Update
from .precision import autocast
from .randomness import SampleNoise
from .ranks import share

GAIN = 1.5  # factor on torch's own initialisation of convolutions: with less, small VAEs stay at a grey mean
FIRST_LOG_VARIANCE = -6.0
FOREGROUND_WEIGHT = 2.0
KL_WEIGHT = 1e-6

NormSilu = Callable[[Tensor, Tensor], Tensor]
"""`norm_silu`, or the same as one fused kernel."""


@dataclass(frozen=True)
class Phase:
    """A phase of `steps` steps on clips of `frames` pixel frames, with batch size `batch`."""

    steps: int
    frames: int
    batch: int


MINIATURE_PHASES = (Phase(1700, 1, 16), Phase(750, 9, 4), Phase(200, 17, 2), Phase(50, 41, 2))


class Convolution(Protocol):
    """The tensors of a convolution that are modified; in a Wan VAE every convolution has a bias."""

    weight: Tensor
    bias: Tensor


@torch.no_grad()
def initialise(vae: WanVAE, seed: int) -> None:
    """Initialises the weights for fast training: residual blocks start as the identity, temporal convolutions pass the
    newest frame through.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            looks_back = module.weight.ndim == 5 and module.kernel_size[0] == 3
            fan_in = (module.weight[0, :, -1] if looks_back else module.weight[0]).numel()
            module.weight.normal_(0.0, GAIN / (3 * fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
            if looks_back:
                module.weight[:, :, :-1].zero_()  # at first only the newest frame has weight
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            cast("nn.Conv3d", module.residual[-1]).weight.zero_()
        elif isinstance(module, Downsample | Upsample) and module.time_conv is not None:
            _pass_through(cast("nn.Conv3d", module.time_conv))
    bias = cast("Convolution", vae.conv1).bias
    bias[bias.shape[0] // 2 :] = FIRST_LOG_VARIANCE


def _pass_through(conv: nn.Conv3d) -> None:
    """Makes every output frame equal to the newest input frame, repeated where a convolution makes two
    frames of one.
    """
    conv.weight.zero_()
    for index in range(conv.out_channels):
        conv.weight[index, index % conv.in_channels, -1] = 1.0


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """Returns SiLU of the RMS norm over the channels of x [B, C, T, H, W], scaled by `gamma` (C numbers)."""
    last = x.movedim(1, -1)
    return _norm_silu_rows(last.reshape(-1, x.shape[1]), gamma.flatten()).view(last.shape).movedim(-1, 1)


def fused_norm_silu() -> NormSilu:
    """Returns `norm_silu` as one compiled kernel: on a CPU nine times as fast, forward and backward (16 channels,
    bfloat16), after a minute of compilation. If compilation fails, warns and returns the plain one.
    """
    rows = torch.compile(_norm_silu_rows, dynamic=True)
    try:
        rows(torch.ones(2, 4), torch.ones(4))
    except Exception as error:  # whatever a missing compiler, header or Triton raises
        warnings.warn(
            f"The VAE is trained without the fused norm, which is slower: torch.compile failed ({error}).", stacklevel=2
        )
        return norm_silu

    def fused(x: Tensor, gamma: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        return rows(last.reshape(-1, x.shape[1]), gamma.flatten()).view(last.shape).movedim(-1, 1)

    return fused


def _norm_silu_rows(rows: Tensor, gamma: Tensor) -> Tensor:
    wide = rows.float()
    return F.silu(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-12) * gamma).to(rows.dtype)


def encode_clip(vae: WanVAE, video: Tensor, norm: NormSilu = norm_silu) -> tuple[Tensor, Tensor]:
    """Returns mean and log variance [B, 16, 1 + (T - 1)//4, h, w] of the VAE's unnormalised latents of clips [B, 3, T,
    H, W].
    """
    state = CausalState()
    video = video.contiguous(memory_format=memory_format(video.device))
    pieces = [_encode(vae, piece, state, norm) for piece in (video[:, :, :1], video[:, :, 1:]) if piece.shape[2]]
    mean, log_variance = torch.cat(pieces, dim=2).chunk(2, dim=1)
    return mean, log_variance


def _encode(vae: WanVAE, video: Tensor, state: CausalState, norm: NormSilu) -> Tensor:
    x = state.convolve(vae.encoder.conv1, video)
    for layer in (*vae.encoder.downsamples, *vae.encoder.middle):
        x = _run(layer, x, state, norm)
    return vae.conv1(_head(vae.encoder.head, x, state, norm))


def decode_clip(vae: WanVAE, latents: Tensor, norm: NormSilu = norm_silu) -> Tensor:
    """Decodes the VAE's unnormalised latents [B, 16, T, h, w] to clips [B, 3, 4T - 3, 8h, 8w], without clamping."""
    state = CausalState()
    pieces = [_decode(vae, piece, state, norm) for piece in (latents[:, :, :1], latents[:, :, 1:]) if piece.shape[2]]
    return torch.cat(pieces, dim=2)


def _decode(vae: WanVAE, latents: Tensor, state: CausalState, norm: NormSilu) -> Tensor:
    x = state.convolve(vae.decoder.conv1, vae.conv2(latents))
    for layer in (*vae.decoder.middle, *vae.decoder.upsamples):
        x = _run(layer, x, state, norm)
    return _head(vae.decoder.head, x, state, norm)


def _run(layer: nn.Module, x: Tensor, state: CausalState, norm: NormSilu) -> Tensor:
    if not isinstance(layer, ResidualBlock):
        return layer(x, state)
    _, _, conv_in, _, _, _, conv_out = layer.residual
    norm_in, norm_out = (cast("RMSNorm", layer.residual[place]) for place in (0, 3))
    hidden = state.convolve(conv_in, norm(x, norm_in.gamma))
    return state.convolve(conv_out, norm(hidden, norm_out.gamma)) + layer.shortcut(x)


def _head(head: nn.Sequential, x: Tensor, state: CausalState, norm: NormSilu) -> Tensor:
    scale, _, conv = head
    return state.convolve(conv, norm(x, cast("RMSNorm", scale).gamma))


class VAEStage:
    """Trains the VAE with a reconstruction loss (L1 and squared error, higher weight on the foreground) and a small KL
    loss.
    """

    def __init__(
        self,
        vae: WanVAE,
        phases: tuple[Phase, ...],
        optimisation: Optimisation,
        seed: int,
        norm: NormSilu = norm_silu,
        precision: torch.dtype = torch.bfloat16,
    ):
        self.vae, self.phases, self.seed, self.norm, self.precision = vae, phases, seed, norm, precision
        self.networks, self.optimisation = {"vae": vae}, {"vae": optimisation}

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self, number: int) -> Phase:
        for phase in self.phases:
            if number < phase.steps:
                return phase
            number -= phase.steps
        return self.phases[-1]

    def step(self, number: int) -> Update:
        phase = self.phase(number)
        indices = share(phase.batch)
        device = next(self.vae.parameters()).device
        video = draw_clips(self.seed, number, indices, phase.frames).video.to(device)
        random = SampleNoise(self.seed, number, indices)
        with autocast(device, self.precision):
            mean, log_variance = (x.float() for x in encode_clip(self.vae, video, self.norm))
            epsilon = random.normal(mean.shape[1:]).to(device)
            result = decode_clip(self.vae, mean + (0.5 * log_variance).exp() * epsilon, self.norm).float()
        error = result - video
        weight = 1 + FOREGROUND_WEIGHT * foreground(video)
        reconstruction = (weight * (error.abs() + error.square())).mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        psnr = 10 * torch.log10(4 / error.detach().square().mean())
        return Update("vae", reconstruction + KL_WEIGHT * kl, {"psnr": psnr.item(), "kl": kl.item()})


def foreground(video: Tensor) -> Tensor:
    """Returns [B, 1, T, H, W]: 1 where a pixel differs from the clip's median colour, else 0."""
    usual = video.flatten(2).median(dim=2).values[:, :, None, None, None]
    return ((video - usual).abs().amax(1, keepdim=True) > 0.1).float()


@torch.no_grad()
def calibrate(vae: WanVAE, seed: int, clips: int = 32, frames: int = 41) -> None:
    """Rescales the latents so that Wan's own per-channel statistics normalise them. Decoded images do not change.

    Other programs normalise every Wan VAE's latents with these constants, so a VAE trained elsewhere has to match them.
    """
    means = [encode_clip(vae, draw_clips(seed, i, range(1), frames).video)[0] for i in range(clips)]
    latents = torch.cat(means)
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    scale = torch.tensor(LATENT_STD) / std.clamp(min=1e-3)
    shift = torch.tensor(LATENT_MEAN) - scale * mean
    channels = len(scale)
    to_latents, from_latents = (cast("Convolution", conv) for conv in (vae.conv1, vae.conv2))
    to_latents.weight[:channels] *= scale[:, None, None, None, None]
    to_latents.bias[:channels] = to_latents.bias[:channels] * scale + shift
    # conv2 reads (latent - shift) / scale.
    from_latents.bias -= torch.einsum("oi,i->o", from_latents.weight[:, :, 0, 0, 0], shift / scale)
    from_latents.weight /= scale[None, :, None, None, None]
