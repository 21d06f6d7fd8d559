"""The rollout with a memory: repeating, resuming, extending, re-caching, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from packforcing_core.cache.config import POLICY_PRESETS, DeepForcing, PackForcing, SinkWindow, Window
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.denoising import BlockDone, frame_timesteps
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, commit_block, commit_due_block, recache, rollout
from tests.small import (
    DENOISING,
    SmallCompressor,
    SmallDecoder,
    block_shape,
    render_blocks,
    small_cache,
    small_context,
    small_model,
)

SMALL = [PackForcing(3, 3, 2, 4), PackForcing(0, 6, 2, 3, mid_span=-1), DeepForcing(2, 3, 6, 9), SinkWindow(9, 3)]


@pytest.mark.parametrize("policy", SMALL, ids=repr)
def test_a_longer_render_begins_with_the_shorter_one(policy):
    long, short = render_blocks(policy, 10), render_blocks(policy, 6)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(long, short, strict=False))


@pytest.mark.parametrize("policy", SMALL, ids=repr)
@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_resumed_render_is_the_one_that_was_not_interrupted(policy, after):
    whole = render_blocks(policy, 9)
    resumed = render_blocks(policy, 9, known=whole[:after])
    difference = max((a.latents - b.latents).abs().max().item() for a, b in zip(whole, resumed, strict=True))
    print(f"max difference after resuming at block {after}: {difference:.1e}")
    assert difference == 0
    assert [b.selection for b in whole] == [b.selection for b in resumed]
    assert all(torch.equal(a.video, b.video) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("name", POLICY_PRESETS)
def test_every_preset_rolls_out(name):
    made = render_blocks(POLICY_PRESETS[name], 8)
    assert len(made) == 8
    assert all(torch.isfinite(block.latents).all() for block in made)


def test_every_block_is_decoded_once_and_carries_its_video():
    model, decoder = small_model(), SmallDecoder()
    cache = small_cache(PackForcing(3, 3, 2, 4), 3, 15)
    compression = Compression(SmallCompressor(3), decoder)
    noise = seeded_noise(1, block_shape(3))
    events = list(rollout(model, small_context(), cache, noise, DENOISING, 5, compression=compression))
    videos = [event.video for event in events if hasattr(event, "video")]
    assert decoder.pushed == len(videos) == 5
    assert all(video.shape == (1, 3, 12, 8, 8) for video in videos)


@pytest.mark.parametrize(
    "policy", [SinkWindow(12, 3), SinkWindow(9, 3, realign=False), Window(9), DeepForcing(2, 3, 6, 9)], ids=repr
)
def test_recaching_equals_a_fresh_cache_with_the_blocks_in_view(policy):
    model = small_model()
    old, new = (model.encode_text(small_context(seed=seed)) for seed in (1, 2))
    torch.manual_seed(0)
    latents = {block: torch.randn(block_shape(3)) for block in range(9)}
    cache, fresh = small_cache(policy, 3), small_cache(policy, 3)
    for block in latents.values():
        commit_block(model, old, cache, cache.begin_block(), block, 0.0)
    in_view = cache.blocks_in_view()
    stale = model.flow(latents[0], frame_timesteps(800.0, latents[0]), new, cache.begin_block())
    recache(model, new, cache, latents)
    for block in in_view:
        commit_block(model, new, fresh, fresh.begin_block(), latents[block], 0.0)
    assert cache.blocks_in_view() == in_view
    for step in range(3):
        noisy, clean = torch.randn(2, *block_shape(3))
        flows, views = [], [c.begin_block() for c in (cache, fresh)]
        for view in views:
            flows.append(model.flow(noisy, frame_timesteps(800.0, noisy), new, view))
            commit_block(model, new, view.cache, view, clean, 0.0)
        assert torch.equal(*flows)
        assert views[0].block == 9 + step
    difference = (model.flow(latents[0], frame_timesteps(800.0, latents[0]), new, fresh.begin_block()) - stale).abs()
    print(f"blocks {in_view} committed again; re-caching moves the flow by {difference.max():.1e}")


def test_recaching_keeps_the_bank_and_goes_on_with_the_blocks_of_the_video():
    model, compressor = small_model(), SmallCompressor(3)
    old, new = (model.encode_text(small_context(seed=seed)) for seed in (1, 2))
    cache = small_cache(PackForcing(3, 6, 2, 8), 3)
    latents, waiting = {}, {}

    def go_on(blocks, text):
        for block in blocks:
            view = cache.begin_block()
            assert view.block == block
            latents[block] = torch.randn(block_shape(3))
            commit_block(model, text, cache, view, latents[block], 0.0)
            waiting[block] = compressor.tokens(latents[block], None, block == 0)
            commit_due_block(model, text, cache, waiting)

    go_on(range(8), old)
    assert cache.blocks_in_view() == (0, 6, 7)
    with pytest.raises(PackForcingError, match=r"latents of blocks \[6, 7\]"):
        recache(model, new, cache, {0: latents[0]})
    recache(model, new, cache, latents)
    fresh = small_cache(PackForcing(3, 6, 2, 8), 3)
    for block in (0, 6, 7):
        commit_block(model, new, fresh, fresh.begin_block(), latents[block], 0.0)
    for ours, theirs in zip(cache.layers, fresh.layers, strict=True):
        past = slice(0, ours.mid(0).start)
        assert torch.equal(ours.v[:, past], theirs.v[:, past])
    assert sorted(cache.mid.blocks) == [1, 2, 3, 4, 5]
    go_on(range(8, 12), new)
    assert sorted(cache.mid.blocks) == list(range(2, 10))
    recache(model, old, cache, latents)
    assert cache.blocks_in_view() == (0, 10, 11)


def test_missing_parts_are_refused_before_anything_runs():
    model = small_model()
    noise = seeded_noise(1, block_shape(3))
    with pytest.raises(PackForcingError, match="needs a compressor and its VAE"):
        next(rollout(model, small_context(), small_cache(PackForcing(), 3), noise, DENOISING, 3))
    with pytest.raises(PackForcingError, match="selection for 1 layers"):
        small_cache(PackForcing(), 3).begin_block(((),))


def test_a_selection_of_another_render_is_refused():
    policy = PackForcing(3, 3, 2, 4)
    made = render_blocks(policy, 7)
    made[5] = replace(made[5], selection=((0, 40), (1, 2)))
    with pytest.raises(PackForcingError, match="does not fit a bank"):
        render_blocks(policy, 8, known=made)


def test_latents_that_are_not_finite_stop_the_render_and_name_the_block():
    model = small_model()
    compression = Compression(SmallCompressor(3))

    def noise(block, step):
        return torch.full(block_shape(3), torch.nan) if block == 5 else seeded_noise(1, block_shape(3))(block, step)

    done = []
    cache = small_cache(PackForcing(3, 3, 2, 4), 3)
    with pytest.raises(PackForcingError, match="Block 5"):
        done.extend(rollout(model, small_context(), cache, noise, DENOISING, 8, compression=compression))
    blocks = [event.block for event in done if isinstance(event, BlockDone)]
    assert blocks == [0, 1, 2, 3, 4]
