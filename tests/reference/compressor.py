"""The compressor's branches by their definitions, one number at a time."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def area_mean(plane: Tensor, rows: int, columns: int) -> Tensor:
    """[..., H, W] -> [..., rows, columns]: every cell is the plain mean of all pixels that it touches."""
    height, width = plane.shape[-2:]
    out = torch.empty(*plane.shape[:-2], rows, columns, dtype=plane.dtype)
    for r in range(rows):
        for c in range(columns):
            top, bottom = r * height // rows, math.ceil((r + 1) * height / rows)
            left, right = c * width // columns, math.ceil((c + 1) * width / columns)
            out[..., r, c] = plane[..., top:bottom, left:right].mean(dim=(-2, -1))
    return out


def clip(video: Tensor, latent_frames: int, grid: tuple[int, int, int], first_block: bool) -> Tensor:
    """What the low-resolution branch encodes, in float64 and in METHOD's order: pad, average, resize, copy in front."""
    frames = list(video.double().unbind(2))
    while len(frames) < 8 * math.ceil(latent_frames / 2):
        frames = [frames[0], *frames] if first_block else [*frames, frames[-1]]
    pairs = [(frames[i] + frames[i + 1]) / 2 for i in range(0, len(frames), 2)]
    small = [area_mean(frame, 16 * grid[1], 16 * grid[2]) for frame in pairs]
    return torch.stack([small[0], *small], dim=2)


def patch_tokens(latents: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, 16, T, 2 r, 2 c] -> [B, T r c, D]: each 2 x 2 patch times the embedding's weights [D, 16, 1, 2, 2], in
    float64.
    """
    latents, weight, bias = latents.double(), weight.double(), bias.double()
    _, _, frames, height, width = latents.shape
    tokens = []
    for t in range(frames):
        for r in range(0, height, 2):
            for c in range(0, width, 2):
                patch = latents[:, :, t, r : r + 2, c : c + 2].flatten(1)
                tokens.append(patch @ weight.flatten(1).T + bias)
    return torch.stack(tokens, dim=1)


def high_res(latents: Tensor, weights: list[tuple[Tensor, Tensor]], grid: tuple[int, int, int]) -> Tensor:
    """Convolutions of kernel 3 over zero padding with METHOD's strides, SiLU between, pooled by cells, in float64."""
    hidden = latents.double()
    for index, (weight, bias) in enumerate((weight.double(), bias.double()) for weight, bias in weights):
        hidden = hidden if index == 0 else hidden * torch.sigmoid(hidden)
        stride = (2, 1, 1) if index == 0 else (1, 1, 1) if index == 4 else (1, 2, 2)
        hidden = F.conv3d(F.pad(hidden, (1,) * 6), weight, bias, stride)
    assert hidden.shape[2] == grid[0]
    return area_mean(hidden, grid[1], grid[2])


def concatenated(low: Tensor | None, high: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Grids [B, D, T, r, c] of both branches, one place at a time in float64: L + W [L; sigmoid(gate) H] + b, with an
    L of zero where `low` is None.
    """
    high, gate, weight, bias = (
        high.double(),
        1 / (1 + torch.exp(-gate.double())),
        weight.double().flatten(1),
        bias.double(),
    )
    low = torch.zeros_like(high) if low is None else low.double()
    out, dim = torch.empty_like(high), high.shape[1]
    for place in itertools.product(*map(range, (high.shape[0], *high.shape[2:]))):
        at = (place[0], slice(None), *place[1:])
        from_low = sum(weight[:, d] * low[at][d] for d in range(dim))
        from_high = sum(weight[:, dim + d] * gate[d] * high[at][d] for d in range(dim))
        out[at] = low[at] + from_low + from_high + bias
    return out
