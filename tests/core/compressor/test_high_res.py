"""The trained branch: its sizes, its arithmetic, and that it can be trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import packforcing_core.compressor
from packforcing_core.compressor.high_res import FUSIONS, HighRes, build_high_res, channels
from packforcing_core.geometry import compressed_grid
from packforcing_core.model.ops import TorchOps, build_on_meta
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


def test_an_untrained_concatenation_has_an_open_gate_and_the_other_forms_layers():
    added, one, again, other = (
        build_high_res(128, seed, form) for seed, form in ((1, "add"), *[(1, "concat")] * 2, (2, "concat"))
    )
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(added.layers[:-1], one.layers[:-1], strict=True))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.join.weight, other.join.weight)
    assert (one.gate.sigmoid() == 0.5).all()
    assert not one.join.weight[:, :128].any()
    high = one(random_latents(4, 16, 16)).std()
    print(f"spread of what the untrained join adds: {high:.2f}")
    assert 0.05 < high < 2


@pytest.mark.parametrize("with_low", [True, False])
def test_the_second_form_is_its_formula(with_low):
    branch, latents = trained_high_res(fusion="concat"), random_latents(3, 10, 26, batch=2)
    low = torch.randn(2, 128, *compressed_grid(3, 10, 26), generator=torch.Generator().manual_seed(1))
    low = low if with_low else None
    weights = [(layer.weight, layer.bias) for layer in branch.layers]
    with torch.no_grad():
        out = branch(latents, low)
        high = reference.high_res(latents, weights, compressed_grid(3, 10, 26))
        expected = reference.concatenated(low, high, branch.gate, branch.join.weight, branch.join.bias)
        added = high if low is None else low + high
    off = steps_off(out, expected)
    print(f"{off:.1f} rounding steps from the formula in float64, spread {expected.std():.1e}")
    assert off < DEEP
    assert (expected - added).norm() > 0.1 * added.norm()


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

    for fusion, layers in (("add", 5), ("concat", 6)):
        modules = list(HighRes(128, HostOps, fusion).modules())[1:]
        with_weights = [module for module in modules if list(module.parameters(recurse=False))]
        assert [type(module) for module in with_weights] == [HostConv3d] * layers


def test_the_gate_is_cast_by_the_hosts_ops():
    class HostOps(TorchOps):
        @staticmethod
        def cast(parameter, like):
            return TorchOps.cast(parameter, like) * 0 - 1e4

    host, plain = HighRes(128, HostOps, "concat"), trained_high_res(fusion="concat")
    host.load_state_dict(plain.state_dict())  # whose cast closes the gate: nothing of H remains
    assert torch.equal(host(random_latents(2, 8, 16))[0, :, 0, 0, 0], plain.join.bias)


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


def test_the_first_step_of_a_concatenation_reaches_everything_in_both_branches():
    """And a closed gate would not, by which the test can fail."""
    for gate in (0.0, -1e4):
        branch, latents = build_high_res(128, fusion="concat"), random_latents(4, 16, 16)
        nn.init.constant_(branch.gate, gate)
        low = torch.randn(1, 128, 2, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (branch(latents, low) - 1).square().mean().backward()
        sides = branch.join.weight.grad.split(128, dim=1)
        norms = {"low": low.grad, "join of L": sides[0], "join of H": sides[1]}
        norms |= {name: p.grad for name, p in branch.named_parameters() if not name.startswith("join.w")}
        norms = {name: float(gradient.norm()) for name, gradient in norms.items()}
        print(f"gate {gate}: {', '.join(f'{name} {norm:.1e}' for name, norm in norms.items())}")
        still = {name for name, norm in norms.items() if not norm}
        blocked = {"gate", "join of H", *(f"layers.{n}.{kind}" for n in range(5) for kind in ("weight", "bias"))}
        assert still == (blocked if gate else set())


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
    branches, costs = {}, {}
    for fusion in FUSIONS:
        branches[fusion] = build_on_meta(lambda fusion=fusion: HighRes(1536, fusion=fusion))
        low = torch.empty(1, 1536, 2, 7, 13, device="meta")
        with FlopCounterMode(display=False) as costs[fusion]:
            branches[fusion](torch.empty(1, 16, 4, 60, 104, device="meta"), low)
    vae = build_on_meta(lambda: WanVAE(VAEConfig()))
    with FlopCounterMode(display=False) as low_res:
        encode(vae, torch.empty(1, 3, 9, 112, 208, device="meta"))
    text = README.read_text(encoding="utf-8")
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d{1,3}(?:,\d{3}){2,}", text)}
    expected = {
        **{f"parameters, {fusion}": sum(p.numel() for p in branch.parameters()) for fusion, branch in branches.items()},
        **{f"operations, {fusion}": counted.get_total_flops() for fusion, counted in costs.items()},
        "operations of the low-resolution branch": low_res.get_total_flops(),
    }
    print(expected)
    assert set(expected.values()) <= stated
