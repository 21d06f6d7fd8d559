from __future__ import annotations

import math

import pytest
import torch

from packforcing_core.attention import sdpa


@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_is_the_softmax_of_scaled_products_for_every_head_apart(head_dim):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 3, head_dim, generator=generator)
    k, v = torch.randn(2, 2, 11, 3, head_dim, generator=generator)
    out = sdpa(q, k, v)
    worst = 0.0
    for batch in range(2):
        for head in range(3):
            scores = q[batch, :, head].double() @ k[batch, :, head].double().T / math.sqrt(head_dim)
            expected = scores.softmax(dim=1) @ v[batch, :, head].double()
            worst = max(worst, (out[batch, :, head] - expected).abs().max().item())
    print(f"max difference {worst:.1e}")
    assert out.shape == q.shape
    assert worst < 1e-6
