"""The feed-forward of a layer, with its GELU in place: the values of the modules called one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packforcing_core.kernels import fast
from packforcing_core.model.causal import feed_forward


class HostLinear(nn.Linear):
    """As a host's: a class of its own."""


def ffn_of(linear: type[nn.Linear] = HostLinear) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(linear(8, 32), nn.GELU(approximate="tanh"), linear(32, 8))


@pytest.mark.parametrize("linear", [HostLinear, nn.Linear])
@torch.no_grad()
def test_it_is_bit_equal_and_leaves_its_input_alone(linear):
    ffn, x = ffn_of(linear), torch.randn(2, 5, 8)
    given = x.clone()
    assert torch.equal(feed_forward(ffn, x), ffn(x))
    assert torch.equal(x, given)


@torch.no_grad()
def test_another_gelu_stays_what_it_is():
    ffn, x = ffn_of(), torch.randn(2, 5, 8)
    ffn[1] = nn.GELU()
    assert torch.equal(feed_forward(ffn, x), ffn(x))


@pytest.mark.parametrize("place", ["whole", 0, 1, 2])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@torch.no_grad()
def test_hooks_are_heard(place, kind):
    ffn, heard = ffn_of(), []
    getattr(ffn if place == "whole" else ffn[place], kind)(lambda *_: heard.append(place))
    feed_forward(ffn, torch.randn(2, 5, 8))
    assert heard == [place]


def test_gradients_pass_by_the_kernel_that_has_none(monkeypatch):
    """Also those of the weights alone, where `x` wants none."""
    monkeypatch.setattr(fast, "serves", lambda x: True)
    monkeypatch.setattr(fast, "linear_gelu", lambda x, weight, bias: F.linear(x, weight, bias).detach())
    ffn, x = ffn_of(nn.Linear), torch.randn(2, 5, 8)
    made, expected = (
        torch.autograd.grad(run(x).sum(), ffn[0].weight)[0] for run in (lambda x: feed_forward(ffn, x), ffn)
    )
    assert torch.equal(made, expected)
