"""The weights in the package: what they hold, that they fit, and that other loaders of ours read them as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packforcing_core.checkpoint.load import inspect, read_checkpoint
from packforcing_core.cli.main import main
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.scene import sample_scene
from packforcing_core.miniature import load
from packforcing_core.miniature.world import WORDS
from packforcing_core.model.config import WanConfig
from packforcing_core.vae.config import VAEConfig

LARGEST = 25e6


def test_the_weights_are_small_enough_to_ship_and_come_with_a_card():
    sizes = {path.name: path.stat().st_size for path in load.WEIGHTS.iterdir()}
    print(sizes, sum(sizes.values()))
    assert sum(sizes.values()) <= LARGEST
    assert {"wan.safetensors", "vae.safetensors", "text.safetensors", "MODEL_CARD.md"} <= set(sizes)


def test_the_sizes_are_those_that_stock_loaders_expect():
    config = load.read_model().config
    assert config == WanConfig(dim=256, ffn_dim=512, num_layers=6, num_heads=2, text_dim=128, text_len=24)
    # Loaders take width / 128 heads, a VAE of two residual blocks, and stages 1, 2, 4, 4 times the width.
    assert config.head_dim == 128
    assert load.load_vae().config == VAEConfig(encoder_dim=16, decoder_dim=16)


def test_its_file_is_recognised_by_name():
    found = inspect(load.MODEL)
    assert found.usable
    assert found.family is load.FAMILY
    assert read_checkpoint(load.MODEL).family.frames_per_block == 4
    assert load.FAMILY.first_block_steps[:2] == (1000.0, 937.5)
    assert len(load.FAMILY.first_block_steps) == 16
    assert main(["inspect", str(load.MODEL)]) == 0


def test_the_text_encoder_knows_every_word_that_scenes_are_described_with():
    words = load.load_text()
    assert words.vocabulary == WORDS[: len(words.vocabulary)]
    prompts = [describe(sample_scene(np.random.default_rng(seed))) for seed in range(200)]
    assert not [word for prompt in prompts for word in words.unknown(prompt)]
    assert words(prompts).shape == (200, 24, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_computes_in_the_dtype_but_embeds_in_float32(dtype):
    model = load.load_model(dtype)
    assert model.dtype == dtype
    assert model.net.patch_embedding.weight.dtype == torch.float32
    assert model.net.blocks[0].ffn[0].weight.dtype == dtype
    assert all(weight.isfinite().all() for weight in model.net.state_dict().values())


def test_the_compressor_fits_the_model_where_there_is_one():
    loaded = load.load_compressor(dtype=torch.float32)
    print(loaded and loaded.info)
    assert (loaded is None) == (not load.COMPRESSOR.exists())
    if loaded is not None:
        assert loaded.high_res.dim == load.read_model().config.dim
        assert loaded.info.frames_per_block == load.FAMILY.frames_per_block
