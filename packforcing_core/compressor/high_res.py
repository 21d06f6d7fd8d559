"""The trained branch: five convolutions over the block's latents at full resolution, pooled to the grid, and its fusion
with the low-resolution branch.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import LATENT_CHANNELS, compressed_grid
from ..model.ops import Ops, TorchOps, build_on_meta

# Channels between the latent's and the model's, for a model of width REFERENCE_DIM, and the strides in time and space
# of the convolutions. Source: the PackForcing paper (arXiv 2603.25730).
HIDDEN_CHANNELS = (32, 128, 512, 2048)
STRIDES = ((2, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1))
REFERENCE_DIM = 1536
MIN_CHANNELS = 8

Fusion = Literal["add", "concat"]
FUSIONS: dict[Fusion, str] = {
    "add": "the sum of both branches",
    "concat": "both branches concatenated, with a gate, through a trained layer",
}


def channels(dim: int) -> tuple[int, ...]:
    """Channels before and after each convolution, for a model of width `dim`: the paper's, scaled, at least 8."""
    hidden = (max(MIN_CHANNELS, math.floor(width * dim / REFERENCE_DIM + 0.5)) for width in HIDDEN_CHANNELS)
    return (LATENT_CHANNELS, *hidden, dim)


class HighRes(nn.Module):
    """Latents [B, 16, T, h, w] to [B, dim, g_t, g_h, g_w], the grid of `compressed_grid`, for any T, h and w.

    Kernels of size 3 with padding 1 give ceil(T/2) x ceil(h/8) x ceil(w/8), at least one along each axis. An adaptive
    average pool reduces that to the grid, which rounds down in space. With H the result, and L the low-resolution
    branch's, a cell of the grid becomes

        add      L + H
        concat   L + W [L; sigmoid(a) H] + b,    a [dim] the `gate`, W [dim, 2 dim] and b [dim] the layer `join`

    where L is zero without that branch. "add" is the paper's; for "concat" see this folder's README.
    """

    def __init__(self, dim: int, ops: Ops = TorchOps, fusion: Fusion = "add") -> None:
        super().__init__()
        self.dim, self.fusion, self._ops = dim, fusion, ops
        self.layers = nn.ModuleList(
            ops.Conv3d(before, after, 3, stride=stride, padding=1)
            for (before, after), stride in zip(pairwise(channels(dim)), STRIDES, strict=True)
        )

        if fusion == "concat":
            self.gate = nn.Parameter(torch.empty(dim))
            self.join = ops.Conv3d(2 * dim, dim, 1)

    def forward(self, latents: Tensor, low_res: Tensor | None = None) -> Tensor:
        """`low_res` [B, dim, g_t, g_h, g_w] float32 is the other branch; with it the sum is taken in float32."""
        first, *others = self.layers
        with _own_precision(latents.device):
            hidden = first(latents)
            for layer in others:
                hidden = layer(F.silu(hidden))
            own = F.adaptive_avg_pool3d(hidden, compressed_grid(*latents.shape[2:]))
            if self.fusion == "concat":
                other = torch.zeros_like(own) if low_res is None else low_res.to(own.dtype)
                gate = self._ops.cast(self.gate, own).sigmoid().view(-1, 1, 1, 1)
                own = self.join(torch.cat((other, gate * own), dim=1))
            return own if low_res is None else low_res + own.float()


def _own_precision(device: torch.device) -> AbstractContextManager:
    """Disables autocast: the convolutions are trained in float32, also inside a bfloat16 training step.

    On CPUs with AVX512_BF16 but no AMX, PyTorch 2.11 computes the bf16 weight gradients of three of the five
    convolutions from uninitialised memory; the forward pass is right. The meta device has no autocast.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@torch.no_grad()
def build_high_res(dim: int, seed: int = 0, fusion: Fusion = "add") -> HighRes:
    """An untrained branch for a model of width `dim`, initialised on the CPU from `seed` only.

    Layers are initialised for ReLU (He et al., arXiv 1502.01852). With "add" the last layer starts at zero, so training
    starts from the low-resolution branch alone. With "concat" nothing in the gradient's path is zero: the gate starts
    half open (a = 0), and `join` starts as a random rotation of H with zeros for L.
    """
    # Allocated without torch's own initialisation, which would use the global random generator.
    branch = build_on_meta(lambda: HighRes(dim, fusion=fusion)).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for layer in branch.layers:
        nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.get_parameter("bias"))
    if fusion == "add":
        nn.init.zeros_(branch.layers[-1].get_parameter("weight"))
    else:
        join = branch.join.get_parameter("weight")
        nn.init.zeros_(join)
        nn.init.normal_(join[:, dim:], std=dim**-0.5, generator=generator)
        nn.init.zeros_(branch.join.get_parameter("bias"))
        nn.init.zeros_(branch.gate)
    return branch
