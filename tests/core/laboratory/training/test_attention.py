"""Attention as plain products against PyTorch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.laboratory.training.attention import plain_attention


def results(attention, precision: torch.dtype) -> list[torch.Tensor]:
    """The output for two heads of 128, 32 queries and 160 keys, and its gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 32, 2, 128), (2, 160, 2, 128), (2, 160, 2, 128)
    q, k, v, towards = (torch.randn(shape, generator=generator) for shape in (*shapes, shapes[0]))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        out = attention(*leaves)
    assert out.dtype == precision
    return [out.detach().float(), *torch.autograd.grad((out.float() * towards).sum(), leaves)]


@pytest.mark.parametrize("precision, most", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_plain_products_are_pytorchs_attention(precision, most):
    plain, usual, exact = results(plain_attention, precision), results(sdpa, precision), results(sdpa, torch.float32)
    for name, own, other, true in zip(("output", "to q", "to k", "to v"), plain, usual, exact, strict=True):
        size = true.abs().max()
        apart, from_true, usuals = ((a - b).abs().max() / size for a, b in ((own, other), (own, true), (other, true)))
        print(f"{precision} {name}: {apart:.1e} of the largest apart; from float32 {from_true:.1e}, SDPA {usuals:.1e}")
        assert apart < most
