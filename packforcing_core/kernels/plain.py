"""The operations in plain PyTorch: the fallback without Triton, and the reference for the kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-12
"""As in `torch.nn.functional.normalize`: a vector of zeros stays zero."""


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Channel pairs of `x` [B, L, heads, head_dim] times `rotation` [L or 1, 1, head_dim / 2] complex64, in float32.

    On devices without complex numbers, `rotation` is [L or 1, 1, head_dim / 2, 2], real and imaginary parts.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if not rotation.is_complex():
        return product(pairs, rotation).flatten(-2)
    # As complex numbers: one product is one pass over memory; four real products and their sums are seven.
    return torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(-2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a` times `b`: complex numbers, or [..., 2] real and imaginary parts."""
    if a.is_complex():
        return a * b
    (x, y), (u, v) = a.unbind(-1), b.unbind(-1)
    return torch.stack((x * u - y * v, x * v + y * u), dim=-1)


def add_scaled(base: Tensor, x: Tensor, gain: Tensor) -> Tensor:
    """`base` + `gain` * x for x [B, F, n, D], `gain` [B, F, 1, D] and `base` like one of them."""
    return torch.addcmul(base, x, gain)


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """SiLU of `x` [B, C, ...] scaled to a root mean square of 1 over its channels, times `gamma` [C, 1, ...]."""
    return F.silu(F.normalize(x, dim=1).mul_(gamma * gamma.shape[0] ** 0.5), inplace=True)


def norm_silu_into(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """Writes `norm_silu` to `out`, which must not be `x`; on a CPU no other tensor of that size is made."""
    last = x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    if x.is_cuda and last and hasattr(torch.ops.aten, "_fused_rms_norm"):
        width = x.shape[1]
        normed = F.rms_norm(x.movedim(1, -1), (width,), gamma.flatten(), SMALLEST_NORM**2 / width)
        torch.ops.aten.silu.out(normed, out=out.movedim(1, -1))
        return
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(SMALLEST_NORM)
    torch.div(x, norm, out=out).mul_(gamma * gamma.shape[0] ** 0.5)
    F.silu(out, inplace=True)


def add_biased(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """`x` [B, C, T, H, W] plus `bias` [C] plus `other`, in place."""
    return x.add_(bias.view(-1, 1, 1, 1)).add_(other)


def doubled(x: Tensor) -> Tensor:
    """Each pixel of `x` [B, C, T, H, W] four times: [B, C, T, 2H, 2W]."""
    frames = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=(2.0, 2.0), mode="nearest-exact")
    return frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (tanh form) of a linear layer."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def chosen_slots(scores: Tensor, blocks: Tensor, held: Tensor) -> Tensor:
    """Which bank blocks are shown, and where: [3, k] int32. For each mid slot: the block, its bank slot, and its rank
    in time among the selected blocks.

    `scores` [m] float32 and `blocks` [m] int32 are those of the bank's slots; `held` [k] int32 are the blocks in the
    mid slots, -1 for none. The k highest scores are selected; ties go to the newer block. A block that is in a mid slot
    stays there; the others take the free slots in order of time.
    """
    newest = blocks.argsort(descending=True)
    best = newest[scores[newest].argsort(descending=True, stable=True)][: len(held)]
    chosen, order = blocks[best].sort()
    same = (held[:, None] == chosen).int()
    stays, there = same.amax(1), same.amax(0)
    free, missing = stays.argsort(stable=True), there.argsort(stable=True)
    place = torch.where(stays > 0, same.argmax(1), torch.empty_like(free).scatter(0, free, missing))
    return torch.stack((chosen[place], best[order][place], place)).int()
