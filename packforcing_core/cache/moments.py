"""Means and variances of the keys and values of frames (or compressed blocks), and alignment with those of a trusted
past.

TAME in TetherCache (arXiv 2606.13035). With mean m and standard deviation s of each head and channel over the tokens of
a new frame, and m_pool and s_pool of the trusted frames: x' = (1 - share) x + share (s_pool (x - m) / s + m_pool).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..queued import to_device

LEAST_DEVIATION = 1e-6
FLOAT_BYTES = 4
KINDS = 4
"""Mean and variance of keys, then of values."""


def moments_bytes(places: int, batch: int, heads: int, head_dim: int) -> int:
    """Bytes of `empty_moments`."""
    return places * KINDS * batch * heads * head_dim * FLOAT_BYTES


def empty_moments(places: int, batch: int, heads: int, head_dim: int, device: torch.device | str) -> Tensor:
    """Room for the moments of `places` frames or blocks: [places, 4, B, heads, head_dim] float32."""
    return torch.zeros(places, KINDS, batch, heads, head_dim, dtype=torch.float32, device=device)


def measured(keys: Tensor, values: Tensor) -> Tensor:
    """Moments [4, B, heads, head_dim] over the tokens of keys and values [B, tokens, heads, head_dim]."""
    parts = []
    for x in (keys.float(), values.float()):
        variance, mean = torch.var_mean(x, dim=1, correction=0)
        parts += [mean, variance]
    return torch.stack(parts)


def pooled(moments: Tensor, tokens: Sequence[int]) -> Tensor:
    """Moments [4, B, heads, head_dim] of a union, from the moments of its parts [n, 4, B, heads, head_dim] and their
    numbers of `tokens`.

    The variance of a union is the mean of the variances plus the variance of the means.
    """
    weights = to_device(torch.tensor(tokens, dtype=torch.float32), moments.device) / sum(tokens)
    weights = weights.view(-1, 1, 1, 1, 1)
    means, variances = moments[:, 0::2], moments[:, 1::2]
    mean = (weights * means).sum(dim=0)
    variance = (weights * (variances + (means - mean) ** 2)).sum(dim=0)
    return torch.stack((mean[0], variance[0], mean[1], variance[1]))


def aligned(keys: Tensor, values: Tensor, pool: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Keys and values moved towards `pool` by `share` (0..1), in their dtype."""
    own = measured(keys, values)
    made = []
    for index, x in ((0, keys), (2, values)):
        deviations = (m[index + 1].sqrt().clamp(min=LEAST_DEVIATION).unsqueeze(1) for m in (own, pool))
        own_deviation, pool_deviation = deviations
        centred = (x.float() - own[index].unsqueeze(1)) / own_deviation
        target = centred * pool_deviation + pool[index].unsqueeze(1)
        made.append(((1 - share) * x.float() + share * target).to(x.dtype))
    return made[0], made[1]
