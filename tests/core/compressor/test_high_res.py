"""The trained branch: its sizes, its arithmetic, and that it can be trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import packforcing_core.compressor
from packforcing_core.compressor.high_res import HighRes, build_high_res, channels
from packforcing_core.geometry import compressed_grid
from packforcing_core.model.ops import build_on_meta
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.streaming import encode
from packforcing_core.vae.wan_vae import WanVAE
from tests.exactness import DEEP, steps_off
from tests.reference import compressor as reference
from tests.small_compressor import random_latents, trained_high_res

SIZES = [(60, 104), (104, 60), (90, 160), (8, 16), (16, 16), (2, 2), (2, 64), (10, 26)]
README = Path(packforcing_core.compressor.__file__).with_name("README.md")


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size_and_block_length_gives_the_grid(frames, height, width):
    branch = build_on_meta(lambda: HighRes(128))
    out = branch(torch.empty(2, 16, frames, height, width, device="meta"))
    assert out.shape == (2, 128, *compressed_grid(frames, height, width))


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (1536, (16, 32, 128, 512, 2048, 1536)),
        (5120, (16, 107, 427, 1707, 6827, 5120)),
        (768, (16, 16, 64, 256, 1024, 768)),
        (128, (16, 8, 11, 43, 171, 128)),
    ],
)
def test_widths_scale_with_the_model(dim, expected):
    assert channels(dim) == expected
    layers = build_on_meta(lambda: HighRes(dim)).layers
    assert tuple(layer.out_channels for layer in layers) == expected[1:]


@pytest.mark.parametrize("frames", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(60, 104), (10, 26), (2, 2)])
def test_it_is_the_network_of_the_definition(frames, height, width):
    branch, latents = trained_high_res(), random_latents(frames, height, width)
    weights = [(layer.weight, layer.bias) for layer in branch.layers]
    with torch.no_grad():
        out = branch(latents)
        expected = reference.high_res(latents, weights, compressed_grid(frames, height, width))
    assert out.shape == expected.shape
    off = steps_off(out, expected)
    print(f"{off:.1f} rounding steps from the definition in float64, spread {expected.std():.1e}")
    assert off < DEEP
    assert expected.std() > 1e-3


def test_an_untrained_branch_is_zero_and_comes_from_its_seed_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    branch, again, other = build_high_res(128, seed=1), build_high_res(128, seed=1), build_high_res(128, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not branch(random_latents(4, 8, 16)).any()
    assert torch.equal(branch.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(branch.layers[0].weight, other.layers[0].weight)


def test_activations_keep_their_size_through_the_untrained_layers():
    branch, hidden = build_high_res(128), random_latents(4, 16, 16)
    for index, layer in enumerate(list(branch.layers)[:-1]):
        hidden = layer(hidden if index == 0 else nn.functional.silu(hidden))
        print(f"spread after layer {index}: {hidden.std():.2f}")
        assert 0.2 < hidden.std() < 3


def test_every_layer_comes_from_ops():
    class HostConv3d(nn.Conv3d):
        pass

    class HostOps:
        Conv3d = HostConv3d

    with_weights = [module for module in HighRes(128, HostOps).modules() if list(module.parameters(recurse=False))]
    assert [type(module) for module in with_weights] == [HostConv3d] * 5


def test_the_items_of_a_batch_do_not_meet():
    branch, latents = trained_high_res(), random_latents(3, 10, 26, batch=3)
    together, alone = branch(latents), torch.cat([branch(item) for item in latents.split(1)])
    off = steps_off(together, alone)
    print(f"a batch and its items: {off:.1f} rounding steps apart")
    assert off < DEEP


def test_gradients_reach_every_parameter_once_the_last_layer_has_left_zero():
    branch, latents = build_high_res(128), random_latents(4, 16, 16)
    optimiser = torch.optim.SGD(branch.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        (branch(latents) - 1).square().mean().backward()
        reached = [name for name, parameter in branch.named_parameters() if parameter.grad.any()]
        print(f"step {step}: {len(reached)} of 10 parameters")
        assert reached == (["layers.4.weight", "layers.4.bias"], [n for n, _ in branch.named_parameters()])[step]
        optimiser.step()
    assert branch(latents).std() > 0


def test_nothing_is_written_in_place():
    branch, latents = trained_high_res(), random_latents(4, 8, 16)
    versions = []
    hooks = [
        layer.register_forward_hook(lambda *call: versions.append((call[2], call[2]._version)))
        for layer in branch.layers
    ]
    branch(latents)
    for hook in hooks:
        hook.remove()
    assert latents._version == 0
    assert len(versions) == 5
    assert all(out._version == version for out, version in versions)


def test_the_readme_states_what_the_branches_cost():
    branch = build_on_meta(lambda: HighRes(1536))
    with FlopCounterMode(display=False) as high_res:
        branch(torch.empty(1, 16, 4, 60, 104, device="meta"))
    vae = build_on_meta(lambda: WanVAE(VAEConfig()))
    with FlopCounterMode(display=False) as low_res:
        encode(vae, torch.empty(1, 3, 9, 112, 208, device="meta"))
    text = README.read_text(encoding="utf-8")
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d{1,3}(?:,\d{3}){2,}", text)}
    expected = {
        "parameters": sum(parameter.numel() for parameter in branch.parameters()),
        "operations of the high-resolution branch": high_res.get_total_flops(),
        "operations of the low-resolution branch": low_res.get_total_flops(),
    }
    print(expected)
    assert set(expected.values()) <= stated
