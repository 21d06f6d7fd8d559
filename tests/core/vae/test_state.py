"""Causal convolutions as sums of 2-D ones, against the modules they stand for."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.model.ops import TorchOps
from packforcing_core.vae import state as state_module
from packforcing_core.vae.state import CausalState, splits_time
from packforcing_core.vae.streaming import decode, encode
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.vaes import random_latents, random_vae, random_video


class OwnConv3d(TorchOps.Conv3d):
    """What a host might put in a convolution's place."""


def convolved(conv, pieces):
    state = CausalState()
    return torch.cat([state.convolve(conv, piece) for piece in pieces], dim=2), state.tails[conv]


@pytest.mark.parametrize("kernel, padding, stride", [((3, 3, 3), (0, 1, 1), 1), ((3, 1, 1), 0, 1), ((3, 1, 1), 0, 2)])
@pytest.mark.parametrize("pieces", [[2, 2], [4, 2], [2, 6]])
def test_a_plain_convolution_by_frames_equals_the_module(kernel, padding, stride, pieces):
    torch.manual_seed(0)
    plain = TorchOps.Conv3d(5, 7, kernel, padding=padding, stride=(stride, 1, 1))
    other = OwnConv3d(5, 7, kernel, padding=padding, stride=(stride, 1, 1))
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, sum(pieces), 4, 6)
    assert splits_time(plain, x, 4)
    assert not splits_time(other, x, 4)
    (fast, fast_tail), (slow, slow_tail) = (convolved(conv, x.split(pieces, dim=2)) for conv in (plain, other))
    off = steps_off(fast, slow)
    print(f"{off:.1f} rounding steps apart, deviation {slow.std():.2f}")
    assert off < SHALLOW
    assert torch.equal(fast_tail, slow_tail)


@pytest.mark.parametrize("kernel, padding", [((3, 3, 3), (0, 1, 1)), ((3, 1, 1), 0)])
@pytest.mark.parametrize("unfolded", [state_module.UNFOLDED_SIZE, 0], ids=["by frames", "whole"])
def test_a_first_frame_alone_meets_one_row_of_the_kernel(kernel, padding, unfolded, monkeypatch):
    monkeypatch.setattr(state_module, "UNFOLDED_SIZE", unfolded)
    torch.manual_seed(0)
    plain, other = TorchOps.Conv3d(5, 7, kernel, padding=padding), OwnConv3d(5, 7, kernel, padding=padding)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 4, 4, 6)
    (fast, fast_tail), (slow, slow_tail) = (convolved(conv, x.split([1, 2, 1], dim=2)) for conv in (plain, other))
    off = steps_off(fast, slow)
    print(f"{off:.1f} rounding steps apart, deviation {slow.std():.2f}")
    assert off < SHALLOW
    assert torch.equal(fast_tail, slow_tail)


@torch.no_grad()
@pytest.mark.parametrize("unfolded", [state_module.UNFOLDED_SIZE, 0], ids=["by frames", "whole"])
def test_a_tail_holds_no_more_memory_than_its_frames(unfolded, monkeypatch):
    monkeypatch.setattr(state_module, "UNFOLDED_SIZE", unfolded)
    conv = TorchOps.Conv3d(2, 2, 3, padding=(0, 1, 1))
    video = torch.randn(1, 2, 8, 4, 6)
    for frames in (1, 2, 4):
        for pieces in (video.split(frames, dim=2), [piece.clone() for piece in video.split(frames, dim=2)]):
            _, tail = convolved(conv, pieces)
            assert torch.equal(tail, video[:, :, -2:])
            assert tail.untyped_storage().nbytes() == tail.nbytes


def test_a_hooked_convolution_is_called():
    conv = TorchOps.Conv3d(2, 2, 3, padding=(0, 1, 1))
    conv.register_forward_hook(lambda module, given, made: made + 1)
    assert not splits_time(conv, torch.zeros(1, 2, 1, 4, 4), 3)


def test_the_gradient_is_that_of_the_module(monkeypatch):
    gradients = []
    for limit in (state_module.UNFOLDED_SIZE, 0):
        monkeypatch.setattr(state_module, "UNFOLDED_SIZE", limit)
        torch.manual_seed(0)
        conv = TorchOps.Conv3d(3, 4, 3, padding=(0, 1, 1))
        x = torch.randn(1, 3, 4, 5, 6, requires_grad=True)
        made, _ = convolved(conv, x.split([1, 3], dim=2))
        made.square().sum().backward()
        gradients.append((x.grad, conv.weight.grad, conv.bias.grad))
    worst = max(steps_off(*pair) for pair in zip(*gradients, strict=True))
    print(f"gradients: {worst:.1f} rounding steps apart")
    assert worst < DEEP


def test_a_whole_decode_and_encode_by_frames_equal_the_plain_ones(monkeypatch):
    vae, latents, video = random_vae(), random_latents(4), random_video(9)
    fast = decode(vae, latents), encode(vae, video)
    monkeypatch.setattr(state_module, "UNFOLDED_SIZE", 0)
    slow = decode(vae, latents), encode(vae, video)
    off = [steps_off(*pair) for pair in zip(fast, slow, strict=True)]
    print(f"rounding steps apart: decoded {off[0]:.1f}, encoded {off[1]:.1f}")
    assert 0 < max(off) < DEEP  # Not equal: it did take the other way.
