"""What the plan says is what is then allocated."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from packforcing_core.cache.config import DeepForcing, Full, PackForcing, SinkWindow, Window
from packforcing_core.cache.select import SELECTS_AGAIN
from packforcing_core.folder.blocks import BlockStore
from packforcing_core.folder.manifest import Manifest, Take
from packforcing_core.geometry import VideoGeometry
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.config import WAN_SIZES, WanConfig
from packforcing_core.model.ops import TorchOps, build_on_meta
from packforcing_core.model.wan import Wan
from packforcing_core.recipe.plan import parameter_count, plan_render
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_cache
from packforcing_core.sampler.denoising import BlockDone
from tests.small import CONFIG, DENOISING

SIZES = [VideoGeometry(64, 32, 16.0, 3, 10), VideoGeometry(80, 48, 16.0, 1, 30), VideoGeometry(32, 32, 16.0, 4, 2)]
WINDOWS = [Full(), Window(21), Window(7), SinkWindow(12, 3), SinkWindow(21, 10), SinkWindow(8, 0, realign=False)]
CHOOSING = [DeepForcing(), PackForcing(), PackForcing(bank_storage="vram", top_k_blocks=3, bank_blocks=8)]


def meta_model(config: WanConfig, dtype: torch.dtype) -> CausalWan:
    return CausalWan(build_on_meta(lambda: Wan(config, TorchOps)), config, dtype=dtype)


@pytest.mark.parametrize("policy", WINDOWS + CHOOSING, ids=repr)
@pytest.mark.parametrize("geometry", SIZES, ids=lambda g: f"{g.width}x{g.height}, {g.blocks} of {g.frames_per_block}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_planned_bytes_are_the_allocated_ones(policy, geometry, dtype):
    recipe = Recipe(geometry, policy, DENOISING, seed=0)
    plan = plan_render(CONFIG, recipe, dtype)
    cache = build_cache(meta_model(CONFIG, dtype), recipe)
    print(f"planned {plan.buffer_bytes}, allocated {cache.nbytes}")
    assert cache.nbytes == plan.buffer_bytes
    assert cache.host_nbytes == plan.host_bytes

    layer = cache.layers[0]
    stored = layer.k.shape[1]
    pruning = recipe.partitions.pruning is not None  # It keeps more than a block then attends to.
    assert (stored >= plan.attended_tokens) if pruning else (stored == plan.attended_tokens)
    assert plan.attended_tokens == plan.sink_tokens + plan.mid_tokens + plan.recent_tokens + plan.current_tokens
    past_tokens = stored - plan.current_tokens
    assert plan.cache_bytes == CONFIG.num_layers * 2 * CONFIG.dim * dtype.itemsize * past_tokens
    assert plan.current_tokens == geometry.frames_per_block * geometry.tokens_per_frame


def test_a_clip_shorter_than_the_window_plans_no_slot_it_never_fills():
    plan = plan_render(CONFIG, Recipe(SIZES[2], Window(21), DENOISING, seed=0))
    assert plan.attended_tokens == SIZES[2].latent_frames * SIZES[2].tokens_per_frame


@pytest.mark.parametrize("config", [*WAN_SIZES.values(), CONFIG], ids=lambda config: f"width {config.dim}")
def test_parameters_are_counted_as_the_network_has_them(config):
    net = build_on_meta(lambda: Wan(config, TorchOps))
    assert parameter_count(config) == sum(parameter.numel() for parameter in net.parameters())


def test_the_peak_holds_all_its_parts():
    recipe = Recipe(SIZES[0], Window(21), DENOISING, seed=0)
    plan, with_decoder = plan_render(CONFIG, recipe), plan_render(CONFIG, recipe, decoder_bytes=1000)
    assert with_decoder.peak_bytes == plan.peak_bytes + 1000
    assert plan.peak_bytes > plan.weights_bytes + plan.buffer_bytes
    assert plan_render(CONFIG, recipe, torch.float32).weights_bytes == 2 * plan.weights_bytes


def test_the_plan_of_two_minutes_is_told_in_a_line():
    geometry = VideoGeometry.from_seconds(120, width=832, height=480, fps=16.0, frames_per_block=3)
    planned = plan_render(WAN_SIZES["1.3B"], Recipe(geometry, Window(21), DENOISING, seed=0))
    told, memory = planned.describe(), planned.describe_memory()
    print(told, memory, sep="\n")
    assert (
        "1917 frames in 160 blocks of 3 | attends to at most 32,760 tokens | KV cache 6.04 GB (5.18 GB of it past"
        in told
    )
    assert "on disk 0.20 GB, not counting the video" in told
    assert memory == (
        "in view at most: recent 28,080 + current 4,680 tokens over 21 positions (latent frames), in bfloat16"
    )


def test_no_size_and_no_number_of_tokens_is_told_twice():
    geometry = VideoGeometry.from_seconds(120, width=832, height=480, fps=16.0, frames_per_block=3)
    planned = plan_render(WAN_SIZES["1.3B"], Recipe(geometry, PackForcing(recent_frames=6), DENOISING, seed=0))
    told = f"{planned.describe(length=False)}\n{planned.describe_memory()}"
    print(told)
    figures = re.findall(r"[\d.,]+ GB|\d+,\d+", told)
    assert len(figures) > 7
    assert len(set(figures)) == len(figures)
    assert told.count("KV cache") == 1
    assert f"bank in system RAM: {planned.host_bytes / 1e9:.2f} GB" in told


@pytest.mark.parametrize(
    "policy", [Window(21), PackForcing(), PackForcing(selector="cosine+newest"), DeepForcing()], ids=repr
)
def test_a_block_of_832x480_is_on_disk_as_large_as_planned_and_below_5_mb(tmp_path, policy):
    """The real file of a block of 4, with a selection of every layer and compressed tokens in bfloat16."""
    config = WAN_SIZES["1.3B"]
    geometry = VideoGeometry.from_seconds(120, width=832, height=480, fps=16.0, frames_per_block=4)
    recipe = Recipe(geometry, policy, DENOISING, seed=0)
    plan, partitions = plan_render(config, recipe), recipe.partitions
    chosen = {"packforcing": 16, "deep_forcing": 2 * geometry.tokens_per_frame, "window": 0}[policy.name]
    tokens = torch.randn(1, geometry.compressed_tokens, config.dim).bfloat16() if partitions.bank else None
    done = BlockDone(0, torch.randn(geometry.block_shape), False, ((7,) * chosen,) * config.num_layers, tokens)
    if partitions.bank and partitions.bank.selector in SELECTS_AGAIN:
        done = replace(done, sampled_selection=done.selection)
    manifest = Manifest({}, 120, (Take(0, 0, "0" * 32),))
    store = BlockStore(tmp_path, geometry.block_shape)
    store.check(manifest)
    store.save(done)
    size = (tmp_path / "000000-0.safetensors").stat().st_size
    print(f"{policy.name}: {plan.block_disk_bytes:,} planned, {size:,} bytes, {plan.disk_bytes / 1e9:.2f} GB in all")
    assert size <= plan.block_disk_bytes < size + 3000
    assert size < 5e6
    assert plan.disk_bytes < 120 * 5e6
