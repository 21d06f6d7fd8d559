"""The `attention` seam: one callable that every attention of the transformer goes through."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    """`attention(q, k, v)`: q [B, Lq, heads, head_dim], k and v [B, Lk, heads, head_dim] -> [B, Lq, heads, head_dim].

    Softmax of q.k / sqrt(head_dim) over all Lk keys, no mask: what may not be seen is not handed over.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own scaled dot product attention."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)
