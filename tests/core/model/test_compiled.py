"""Layers through torch.compile: the same pictures, and no more graphs however many blocks there are."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import PackForcing
from packforcing_core.laboratory.bench.protocol import compiled_graphs
from packforcing_core.model.causal import CausalWan
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
from tests.small import (
    CONFIG,
    DENOISING,
    SmallCompressor,
    SmallDecoder,
    block_shape,
    small_cache,
    small_context,
    small_net,
)

BLOCKS = 24
WARM = 6
"""Blocks after which steps, commits and compressed blocks have all been."""


def blocks_of(model: CausalWan):
    cache = small_cache(PackForcing(top_k_blocks=3, bank_blocks=5), 3)
    compression = Compression(SmallCompressor(3), SmallDecoder())
    noise = seeded_noise(7, block_shape(3))
    events = rollout(model, small_context(), cache, noise, DENOISING, BLOCKS + 1, compression=compression, stop=BLOCKS)
    yield from (event.latents for event in events if isinstance(event, BlockDone))


@pytest.mark.long  # A C++ compiler works for a minute.
def test_graphs_stop_growing_and_the_blocks_are_those_of_the_plain_layers():
    torch._dynamo.reset()
    net, began = small_net(), compiled_graphs()
    graphs, differences = [], []
    plain = blocks_of(CausalWan(net, CONFIG))
    for fast in blocks_of(CausalWan(net, CONFIG, compiled=True)):
        graphs.append(compiled_graphs() - began)
        differences.append((fast - next(plain)).abs().max().item())
    print(f"graphs after each block {graphs}; max difference {max(differences):.1e}")
    assert graphs[WARM - 1 :] == [4] * (BLOCKS - WARM + 1)  # Two halves of a layer, for blocks and for compressed ones.
    assert max(differences) < 1e-3
