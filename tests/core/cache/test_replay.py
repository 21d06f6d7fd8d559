"""Blocks that are committed again from what was recorded leave the cache bit for bit as it was, under every policy."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import DeepForcing, PackForcing, Policy, SinkWindow, TetherCache
from packforcing_core.cache.policy import AUTO
from packforcing_core.sampler.denoising import BlockDone, frame_timesteps
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
from tests.policies import SMALL
from tests.small import (
    DENOISING,
    SmallCompressor,
    SmallDecoder,
    block_shape,
    small_cache,
    small_context,
    small_model,
)

BANK = {"sink_frames": 3, "recent_frames": 3, "top_k_blocks": 2, "bank_blocks": 3}
POLICIES = [
    *SMALL,
    SinkWindow(8, 2, realign=False),
    PackForcing(**BANK, mid_span=AUTO, bank_storage="vram"),
    PackForcing(**BANK, selector="future", bank_storage="ram_int8"),
    PackForcing(**BANK, selector="cosine+newest"),
    PackForcing(3, 6, 2, 4, bank_storage="vram_int8"),
    PackForcing(3, 6, 2, 4, bank_storage="ram_int4", kv_int8="all_int4"),
    SinkWindow(9, 3, kv_int8="all"),
    DeepForcing(3, 4, 8, 12, kv_int8="all"),
    PackForcing(**BANK, mid_span=AUTO, kv_int8="all"),
    PackForcing(3, 6, 2, 4, bank_storage="ram_int8", kv_int8="sink+mid"),
    PackForcing(**BANK, alignment=0.35),
    TetherCache(2, 3, 4, kv_int8="all"),
]
BLOCKS, FRAMES = 9, 3


class Unused:
    """A compressor and a decoder that a replay has no need of."""

    def tokens(self, *_):
        raise AssertionError("a recorded block was compressed again")

    def push(self, _):
        raise AssertionError("a recorded block was decoded again")


def run(policy: Policy, known=(), parts: tuple | None = None):
    """The blocks of a render, and its cache."""
    cache = small_cache(policy, FRAMES, BLOCKS * FRAMES)
    found = {done.block: done for done in known}
    compression = Compression(*(parts or (SmallCompressor(FRAMES), SmallDecoder())))
    noise = seeded_noise(7, block_shape(FRAMES))
    events = rollout(
        small_model(),
        small_context(),
        cache,
        noise,
        DENOISING,
        BLOCKS,
        found.get,
        compression,
        decoded_from=BLOCKS if parts else 0,
    )
    return [event for event in events if isinstance(event, BlockDone)], cache


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_replay_without_denoising_decoding_or_compressing_leaves_the_cache_as_it_was(policy):
    made, cache = run(policy)
    again, replayed = run(policy, made, (Unused(), Unused()))
    assert [done.reused for done in again] == [True] * BLOCKS
    model, noisy = small_model(), torch.randn(block_shape(FRAMES), generator=torch.Generator().manual_seed(1))
    views = [each.begin_block() for each in (replayed, cache)]
    text, timesteps = model.encode_text(small_context()), frame_timesteps(500.0, noisy)
    ours, theirs = (model.flow(noisy, timesteps, text, view) for view in views)
    print(f"what the last block sees: max difference {(ours - theirs).abs().max():.1e}, deviation {theirs.std():.2f}")
    assert torch.equal(ours, theirs)
    assert views[0].selection() == views[1].selection()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("missing", [[7, 8], [4], [0, 5]], ids=str)
def test_missing_blocks_are_made_again_the_same_and_the_others_are_kept(policy, missing):
    made, _ = run(policy)
    again, _ = run(policy, [done for done in made if done.block not in missing])
    assert [done.block for done in again if not done.reused] == missing
    worst = max((a.latents - b.latents).abs().max().item() for a, b in zip(made, again, strict=True))
    print(f"max difference {worst:.1e}")
    assert worst == 0
    assert [[list(c) for c in done.selection] for done in made] == [[list(c) for c in d.selection] for d in again]
    assert all(torch.equal(a.video, b.video) for a, b in zip(made, again, strict=True))
