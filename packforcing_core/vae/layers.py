"""The layers of the Wan VAE, with the official key names. Video tensors are [B, C, T, H, W] throughout."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import fast, plain
from ..model.ops import Ops
from .state import CausalState


def causal_conv(ops: Ops, in_dim: int, out_dim: int) -> nn.Module:
    """A 3x3x3 convolution, padded in space only; `CausalState.convolve` puts the previous frames before its input."""
    return ops.Conv3d(in_dim, out_dim, 3, padding=(0, 1, 1))


def to_frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W], a view if channels come last."""
    return x.transpose(1, 2).flatten(0, 1)


def to_video(frames: Tensor, batch: int) -> Tensor:
    """[B T, C, H, W] -> [B, C, T, H, W], a view."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class RMSNorm(nn.Module):
    """Scales the channels of each position to a root mean square of 1, times `gamma` [dim, 1, ...] with `axes` ones."""

    def __init__(self, ops: Ops, dim: int, axes: int) -> None:
        super().__init__()
        self.ops = ops
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.ops.cast(self.gamma, x)
        return F.normalize(x, dim=1).mul_(gamma * gamma.shape[0] ** 0.5)

    def activated(self, x: Tensor) -> Tensor:
        """SiLU of the norm of `x`."""
        return plain.norm_silu(x, self.ops.cast(self.gamma, x))

    def activate_into(self, x: Tensor, out: Tensor, tail: Tensor, lacks: Tensor | None = None) -> None:
        """Writes the SiLU of the norm to `out`, and its last frames also to `tail` [B, C, 1 or 2, H, W]; `lacks` is a
        bias that x lacks.
        """
        gamma = self.ops.cast(self.gamma, x)
        if fast.activates(x) and fast.activates(out):
            fast.norm_silu_into(x, lacks, gamma, out, tail)
        else:
            x = x if lacks is None else x + lacks.view(-1, 1, 1, 1)
            plain.norm_silu_into(x, gamma, out)
            tail.copy_(out[:, :, -tail.shape[2] :])


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, plus a shortcut, which is a 1x1x1 convolution if the width changes."""

    def __init__(self, ops: Ops, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(ops, in_dim, axes=3),
            # SiLU, which `CausalState.convolve` applies with the norm; the entry keeps the official key numbers
            nn.Identity(),
            causal_conv(ops, in_dim, out_dim),
            RMSNorm(ops, out_dim, axes=3),
            nn.Identity(),  # SiLU
            nn.Identity(),  # dropout in the official network
            causal_conv(ops, out_dim, out_dim),
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else ops.Conv3d(in_dim, out_dim, 1)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        _, _, conv_in, _, _, _, conv_out = self.residual
        norm_in, norm_out = (cast("RMSNorm", self.residual[place]) for place in (0, 3))
        # One expression each: a variable would keep a full-size activation alive during the second convolution.
        if state.may_lack_bias(conv_in, x) and state.may_lack_bias(conv_out, x):
            lacks = cast("tuple[Tensor, Tensor]", (conv_in.bias, conv_out.bias))
            changed = state.convolve(
                conv_out, state.convolve(conv_in, x, norm_in, biased=False), norm_out, lacks=lacks[0], biased=False
            )
            return fast.add_biased(changed, lacks[1], self.shortcut(x))
        changed = state.convolve(conv_out, state.convolve(conv_in, x, norm_in), norm_out)
        return changed.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention with one head over the positions of one frame; frames do not attend to each other."""

    def __init__(self, ops: Ops, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(ops, dim, axes=2)
        self.to_qkv = ops.Conv2d(dim, dim * 3, 1)
        self.proj = ops.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        frames = to_frames(x)
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).contiguous()
        query, key, value = qkv.unsqueeze(1).chunk(3, dim=-1)  # [B T, 1, H W, C]
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.squeeze(1).transpose(1, 2).reshape(frames.shape)
        return to_video(frames + self.proj(attended), x.shape[0])


class Upsample(nn.Module):
    """Doubles height and width and halves the channels; with `temporal`, doubles time too.

    The first frame of a video is not doubled: it skips the convolution over time, whose history starts after it.
    """

    def __init__(self, ops: Ops, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
            ops.Conv2d(dim, dim // 2, 3, padding=1),
        )
        self.time_conv = ops.Conv3d(dim, dim * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        if self.time_conv is not None:
            x = _double_time(self.time_conv, x, state)
        if fast.activates(x):
            return to_video(self.resample[1](to_frames(fast.doubled(x))), x.shape[0])
        return to_video(self.resample(to_frames(x)), x.shape[0])


def _double_time(conv: nn.Module, x: Tensor, state: CausalState) -> Tensor:
    if not state.started(conv):
        state.start(conv, None, like=x)
        return x
    pairs = state.convolve(conv, x)
    # Concatenation keeps the memory format, which stack and reshape would lose.
    return torch.cat([half for frame in pairs.split(1, dim=2) for half in frame.chunk(2, dim=1)], dim=2)


class Downsample(nn.Module):
    """Halves height and width; with `temporal`, halves time too, except that the first frame is kept alone."""

    def __init__(self, ops: Ops, dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), ops.Conv2d(dim, dim, 3, stride=(2, 2)))
        self.time_conv = ops.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        x = to_video(self.resample(to_frames(x)), x.shape[0])
        if self.time_conv is None:
            return x
        if not state.started(self.time_conv):
            state.start(self.time_conv, x, like=x)
            return x
        return state.convolve(self.time_conv, x)
