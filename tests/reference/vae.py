"""A Wan VAE without state: every layer sees the whole video at once, zeros before its first frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packforcing_core.vae.layers import AttentionBlock, ResidualBlock
from packforcing_core.vae.wan_vae import WanVAE


def decode_whole(vae: WanVAE, latents: Tensor) -> Tensor:
    """The VAE's own latents [B, 16, T, h, w] to [B, 3, 4T - 3, 8h, 8w], not clamped."""
    x = causal(vae.decoder.conv1, vae.conv2(latents))
    for layer in [*vae.decoder.middle, *vae.decoder.upsamples]:
        x = run(layer, x, upsample)
    return head(vae.decoder.head, x)


def encode_whole(vae: WanVAE, video: Tensor) -> Tensor:
    """[B, 3, 4T - 3, H, W] to the VAE's own latents [B, 16, T, H/8, W/8]."""
    x = causal(vae.encoder.conv1, video)
    for layer in [*vae.encoder.downsamples, *vae.encoder.middle]:
        x = run(layer, x, downsample)
    return vae.conv1(head(vae.encoder.head, x))[:, :16]


def run(layer: nn.Module, x: Tensor, resample) -> Tensor:
    if isinstance(layer, ResidualBlock):
        first, second = layer.residual[2], layer.residual[6]
        hidden = causal(first, F.silu(rms_norm(layer.residual[0].gamma, x)))
        return causal(second, F.silu(rms_norm(layer.residual[3].gamma, hidden))) + layer.shortcut(x)
    if isinstance(layer, AttentionBlock):
        return each_frame(lambda frame: frame + attention(layer, frame), x)
    return resample(layer, x)


def attention(layer: AttentionBlock, frame: Tensor) -> Tensor:
    query, key, value = layer.to_qkv(rms_norm(layer.norm.gamma, frame)).flatten(2).chunk(3, dim=1)
    weights = torch.softmax(query.transpose(1, 2) @ key * query.shape[1] ** -0.5, dim=-1)
    return layer.proj((value @ weights.transpose(1, 2)).reshape(frame.shape))


def upsample(layer: nn.Module, x: Tensor) -> Tensor:
    if layer.time_conv is not None:
        first, rest = x[:, :, :1], x[:, :, 1:]
        even, odd = causal(layer.time_conv, rest).chunk(2, dim=1) if rest.shape[2] else (rest, rest)
        x = torch.cat((first, torch.stack((even, odd), dim=3).flatten(2, 3)), dim=2)
    return each_frame(lambda frame: layer.resample[1](frame.repeat_interleave(2, -1).repeat_interleave(2, -2)), x)


def downsample(layer: nn.Module, x: Tensor) -> Tensor:
    x = each_frame(lambda frame: layer.resample[1](F.pad(frame, (0, 1, 0, 1))), x)
    if layer.time_conv is None or x.shape[2] == 1:
        return x
    return torch.cat((x[:, :, :1], layer.time_conv(x)), dim=2)


def head(layers: nn.Sequential, x: Tensor) -> Tensor:
    return causal(layers[2], F.silu(rms_norm(layers[0].gamma, x)))


def causal(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(F.pad(x, (0, 0, 0, 0, 2, 0)))


def rms_norm(gamma: Tensor, x: Tensor) -> Tensor:
    return x / x.square().mean(dim=1, keepdim=True).sqrt() * gamma


def each_frame(function, x: Tensor) -> Tensor:
    return torch.stack([function(frame) for frame in x.unbind(2)], dim=2)
