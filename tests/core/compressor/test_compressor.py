"""Both branches together, through the model's own patch embedding."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from packforcing_core.compressor.compressor import Compressor
from packforcing_core.compressor.high_res import FUSIONS, build_high_res
from packforcing_core.compressor.low_res import low_res_latents
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import compressed_grid
from packforcing_core.model.causal import CausalWan
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.reference import compressor as reference
from tests.small import CONFIG, small_model, small_net
from tests.small_compressor import random_latents, random_video, small_encode, trained_high_res

SIZES = [(28, 40), (40, 28), (8, 16), (16, 16), (2, 2), (10, 26)]


def build(branches: str, high_res=None, model: CausalWan | None = None) -> Compressor:
    return Compressor(model or small_model(), branches, high_res=high_res, encode=small_encode())


@pytest.mark.parametrize("first_block", [True, False])
@pytest.mark.parametrize("frames", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_size_and_block_length_gives_its_number_of_tokens(frames, height, width, first_block):
    latents = random_latents(frames, height, width)
    tokens = build("both", trained_high_res()).tokens(latents, random_video(latents, first_block), first_block)
    assert tokens.shape == (1, math.prod(compressed_grid(frames, height, width)), CONFIG.dim)


def test_a_block_of_4_at_832x480_is_182_tokens():
    latents = random_latents(4, 60, 104)
    assert build("both", trained_high_res()).tokens(latents, random_video(latents), False).shape[1] == 182


@pytest.mark.parametrize("first_block", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_compressor_is_its_low_resolution_branch(first_block, dtype):
    model, latents = CausalWan(small_net(), CONFIG, dtype=dtype), random_latents(4, 16, 26)
    video = random_video(latents, first_block)
    untrained = build("both", build_high_res(CONFIG.dim), model).tokens(latents, video, first_block)
    low_res = build("low_res", model=model).tokens(latents, video, first_block)
    print(f"max difference: {(untrained - low_res).abs().max():.1e}, spread {low_res.std():.1e}")
    assert torch.equal(untrained, low_res)
    assert low_res.std() > 0.01


def test_the_branches_are_added():
    latents = random_latents(3, 16, 26)
    video, model = random_video(latents), small_model()
    both, low, high = (
        build(branches, trained_high_res(), model).tokens(latents, video, False)
        for branches in ("both", "low_res", "high_res")
    )
    off = steps_off(both, low.double() + high.double())
    print(f"{off:.1f} rounding steps from the sum; spreads {low.std():.1e} and {high.std():.1e}")
    assert off < SHALLOW
    assert min(low.std(), high.std()) > 1e-3


def test_the_branches_are_concatenated():
    branch, latents, model = trained_high_res(fusion="concat"), random_latents(3, 16, 26), small_model()
    video, grid = random_video(latents), compressed_grid(3, 16, 26)
    low, both, high = (
        build(branches, branch, model).tokens(latents, video, False) for branches in ("low_res", "both", "high_res")
    )
    weights = [(layer.weight, layer.bias) for layer in branch.layers]
    places = low.unflatten(1, grid).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        own = reference.high_res(latents, weights, grid)
        for tokens, other in ((both, places), (high, None)):
            expected = reference.concatenated(other, own, branch.gate, branch.join.weight, branch.join.bias)
            off = steps_off(tokens, expected.permute(0, 2, 3, 4, 1).flatten(1, 3))
            print(f"{off:.1f} rounding steps from the formula, {'alone' if other is None else 'both'}")
            assert off < DEEP


def test_low_resolution_tokens_are_patches_in_order_of_time_rows_columns():
    model, latents = small_model(), random_latents(3, 16, 26)
    video, embedding = random_video(latents), model.net.patch_embedding
    tokens = build("low_res", model=model).tokens(latents, video, False)
    small = low_res_latents(small_encode(), video, latents.shape, False)
    expected = reference.patch_tokens(small, embedding.weight, embedding.bias)
    off = steps_off(tokens, expected)
    print(f"{off:.1f} rounding steps from the patches in float64")
    assert off < SHALLOW


def test_high_resolution_tokens_are_in_the_same_order():
    branch, latents = trained_high_res(), random_latents(3, 16, 26)
    tokens = build("high_res", branch).tokens(latents, None, False)
    places = branch(latents)
    grid = compressed_grid(3, 16, 26)
    for token, (t, r, c) in enumerate(
        (t, r, c) for t in range(grid[0]) for r in range(grid[1]) for c in range(grid[2])
    ):
        assert torch.equal(tokens[0, token], places[0, :, t, r, c])


@pytest.mark.parametrize("first_block", [True, False])
def test_the_items_of_a_batch_do_not_meet(first_block):
    compressor, latents = build("both", trained_high_res()), random_latents(4, 10, 26, batch=3)
    video = random_video(latents, first_block)
    together = compressor.tokens(latents, video, first_block)
    pairs = zip(latents.split(1), video.split(1), strict=True)
    alone = torch.cat([compressor.tokens(*pair, first_block) for pair in pairs])
    off = steps_off(together, alone)
    print(f"a batch and its items: {off:.1f} rounding steps apart")
    assert off < DEEP


def test_patches_are_embedded_in_float32_and_tokens_leave_in_the_models_dtype():
    model, latents = CausalWan(small_net(), CONFIG, dtype=torch.bfloat16), random_latents(4, 8, 16).half()
    seen = []
    model.net.patch_embedding.register_forward_hook(lambda module, given, out: seen.append(given[0].dtype))
    tokens = build("both", trained_high_res(), model).tokens(latents, random_video(latents).half(), False)
    assert seen == [torch.float32]
    assert tokens.dtype == torch.bfloat16


def test_the_high_resolution_branch_may_be_stored_narrower_than_the_model():
    latents = random_latents(4, 8, 16)
    narrow = build("high_res", trained_high_res().bfloat16()).tokens(latents, None, False)
    wide = build("high_res", trained_high_res()).tokens(latents, None, False)
    difference = ((narrow - wide).norm() / wide.norm()).item()
    print(f"relative difference of bfloat16 weights: {difference:.1e}")
    assert narrow.dtype == torch.float32
    assert 0 < difference < 0.05


def test_it_works_in_inference_mode_as_a_host_calls_it():
    latents = random_latents(4, 8, 16)
    compressor, video = build("both", trained_high_res()), random_video(latents)
    with torch.inference_mode():
        inside = compressor.tokens(latents, video, False)
    assert torch.equal(inside, compressor.tokens(latents, video, False))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_moves_every_parameter_of_the_branch_and_nothing_else(fusion):
    model, branch, latents = small_model(), build_high_res(CONFIG.dim, fusion=fusion), random_latents(4, 16, 16)
    compressor, video = build("both", branch, model), random_video(latents)
    start = {name: parameter.detach().clone() for name, parameter in branch.named_parameters()}
    optimiser = torch.optim.SGD(branch.parameters(), lr=0.5)
    low_res = build("low_res", model=model).tokens(latents, video, False)
    losses = []
    for _ in range(3):
        loss = (compressor.tokens(latents, video, False) - low_res - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(f"losses: {losses}")
    assert losses == sorted(losses, reverse=True)
    assert [name for name, value in branch.named_parameters() if torch.equal(value, start[name])] == []
    assert latents._version == video._version == 0
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_gradients_reach_the_latents_and_the_patch_embedding():
    model, latents = small_model(), random_latents(4, 8, 16).requires_grad_()
    model.net.patch_embedding.requires_grad_()
    build("both", trained_high_res(), model).tokens(latents, random_video(latents), False).sum().backward()
    assert latents.grad.any()
    assert model.net.patch_embedding.weight.grad.any()


@pytest.mark.parametrize("branches", ["both", "low_res"])
def test_missing_frames_are_refused(branches):
    compressor = build(branches, trained_high_res())
    assert compressor.needs_frames
    with pytest.raises(PackForcingError, match=r"no decoded frames.*Connect the VAE"):
        compressor.tokens(random_latents(4, 8, 16), None, first_block=False)


def test_the_high_resolution_branch_alone_needs_neither_frames_nor_a_vae():
    compressor = Compressor(small_model(), "high_res", high_res=trained_high_res())
    assert not compressor.needs_frames
    assert compressor.tokens(random_latents(4, 8, 16), None, first_block=False).any()


@pytest.mark.parametrize("branches", ["both", "low_res"])
def test_a_missing_vae_is_refused_before_anything_runs(branches):
    with pytest.raises(PackForcingError, match="need the VAE, but none is connected"):
        Compressor(small_model(), branches, high_res=trained_high_res())


@pytest.mark.parametrize("branches", ["both", "high_res"])
def test_missing_weights_are_refused_before_anything_runs(branches):
    with pytest.raises(PackForcingError, match=r"need trained compressor weights, but none are loaded.*zero-shot"):
        Compressor(small_model(), branches, encode=small_encode())


def test_a_branch_of_another_width_is_refused():
    wide = dataclasses.replace(CONFIG, dim=256)
    with pytest.raises(PackForcingError, match="width 128; this model's width is 256"):
        Compressor(CausalWan(small_net(), wide), "high_res", high_res=trained_high_res())


def test_unknown_branches_are_refused():
    with pytest.raises(PackForcingError, match="'hr'; expected one of both, high_res, low_res"):
        build("hr", trained_high_res())


@pytest.mark.parametrize("shape", [(16, 4, 8, 16), (1, 4, 16, 8, 16), (1, 16, 0, 8, 16)])
def test_latents_of_another_shape_are_refused(shape):
    with pytest.raises(PackForcingError, match=r"expected \[B, 16, T, h, w\]"):
        build("high_res", trained_high_res()).tokens(torch.zeros(shape), None, False)
