"""The PackForcing memory against the same memory by brute force, on the real passes of a small model."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.config import Full, PackForcing
from packforcing_core.cache.mid import CompressedRope
from packforcing_core.cache.select import Question, mean_affinity
from packforcing_core.rope import GridRope, rotate
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block, commit_due_block
from tests.exactness import DEEP, SHALLOW, STEP, steps_off
from tests.reference.memory import PackForcingOracle, affinity, at_time, compressed_positions
from tests.reference.wan import rope as rope_reference
from tests.small import (
    CONFIG,
    GRID,
    SmallCompressor,
    block_shape,
    render_blocks,
    small_cache,
    small_context,
    small_model,
)

CASES = [
    (4, PackForcing(sink_frames=4, top_k_blocks=2, bank_blocks=4)),
    (4, PackForcing(sink_frames=0, recent_frames=8, top_k_blocks=2, bank_blocks=3, mid_span=0.3)),
    (3, PackForcing(sink_frames=3, top_k_blocks=3, bank_blocks=3, mid_span=-1, bank_storage="vram")),
    (1, PackForcing(sink_frames=2, recent_frames=3, top_k_blocks=1, bank_blocks=5)),
    (2, PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=2, bank_blocks=4, mid_span=1, sink_gap=3)),
]


def oracle_of(policy: PackForcing, frames_per_block: int) -> PackForcingOracle:
    plan = policy.partitions(frames_per_block)
    return PackForcingOracle(
        frames_per_block,
        plan.sink_frames,
        plan.recent_frames,
        plan.bank.top_k_blocks,
        plan.bank.bank_blocks,
        plan.bank.mid_span,
        CONFIG.num_layers,
        GRID,
        gap=plan.sink_gap,
    )


@pytest.mark.parametrize("frames_per_block, policy", CASES)
def test_every_pass_equals_attention_over_concatenated_and_freshly_rotated_keys(frames_per_block, policy):
    model, blocks = small_model(), 10
    text = model.encode_text(small_context())
    cache, oracle = small_cache(policy, frames_per_block), oracle_of(policy, frames_per_block)
    compressor = SmallCompressor(frames_per_block)
    waiting, worst, mids = {}, 0.0, 0
    torch.manual_seed(0)
    clean = [torch.randn(block_shape(frames_per_block)) for _ in range(blocks)]
    for block, latents in enumerate(clean):
        view = cache.begin_block()
        oracle.block, oracle.mode = block, "read"
        noisy = torch.randn(block_shape(frames_per_block))
        for timestep in (900.0, 500.0):
            ours = model.flow(noisy, frame_timesteps(timestep, noisy), text, view)
            oracle.follow(view.selection())
            worst = max(worst, steps_off(ours, model.flow(noisy, frame_timesteps(timestep, noisy), text, oracle)))
        assert oracle.agrees(view.selection())
        mids += sum(map(len, view.selection()))

        commit_block(model, text, cache, view, latents, 0.0)
        oracle.mode = "commit"
        model.commit(latents, frame_timesteps(0.0, latents), text, oracle)
        waiting[block] = compressor.tokens(latents, None, block == 0)
        if cache.due_block is not None:
            oracle.block, oracle.mode = cache.due_block, "twin"
            tokens = waiting[cache.due_block]
            model.commit_tokens(tokens, torch.zeros(1, 1), text, oracle)
            commit_due_block(model, text, cache, waiting)
    print(f"{worst:.1f} rounding steps apart over {blocks} blocks with {mids} selections")
    assert worst < DEEP
    assert mids > 2 * CONFIG.num_layers


@pytest.mark.parametrize("gap", [0, 3, 12, 1000])
def test_the_gap_behind_the_sink_is_left_open_as_far_as_was_asked(gap):
    plan = PackForcing(sink_frames=8, recent_frames=4, top_k_blocks=4, mid_span=1, sink_gap=gap).partitions(4)
    for block in range(3, 40):
        banked = block - 3
        window = plan.window(4 * block, banked)
        mid, true_gap = min(banked, 4), 4 * block - 4 - 8
        behind = window.current_positions[0] - 4 - mid - 8
        assert behind == min(gap, true_gap - mid)
        assert [p.position for p in window.past if p.frame < 8] == list(range(8))
        assert [p.position for p in window.past if p.frame >= 8] == [8 + behind + mid + i for i in range(4)]
        assert window.mid_positions == tuple(8 + behind + i for i in range(mid))


def test_affinity_by_means_equals_affinity_pair_by_pair():
    torch.manual_seed(1)
    queries, keys = torch.randn(2, 30, 3, 16), torch.randn(5, 2, 7, 3, 16)
    question = Question(queries.mean(1), queries, range(5), keys.mean(2), keys.__getitem__, 0, 0, 0, queries[:, 0], 2)
    scores, expected = mean_affinity(question), [affinity(queries, k) for k in keys]
    # A mean of products cancels: what is rounded is as large as the products, whose deviation is 1.
    off = max(abs(a - b) for a, b in zip(scores, expected, strict=True)) / STEP
    print(f"phi is {off:.2f} rounding steps from float64, its spread {max(expected) - min(expected):.1e}")
    assert off < SHALLOW
    assert max(expected) - min(expected) > 1e-3


def test_with_room_for_the_whole_clip_it_equals_the_full_history():
    clip = PackForcing(sink_frames=3, recent_frames=15)
    ours, full = render_blocks(clip, 6), render_blocks(Full(), 6)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, full, strict=True))
    short = render_blocks(PackForcing(sink_frames=3, recent_frames=6), 6)
    assert not torch.equal(short[-1].latents, full[-1].latents)


def test_moving_the_whole_window_changes_nothing():
    """Positions may count from the window's first frame, since only their differences matter."""
    rope = GridRope(CONFIG.head_dim, GRID)
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 1, 4 * GRID[0] * GRID[1], CONFIG.num_heads, CONFIG.head_dim)
    positions = [0.0, 1.0, 1.3125, 7.0]
    outs = []
    for shift in (0.0, 1234.0):
        rotation = rope.frames([position + shift for position in positions])
        outs.append(sdpa(rotate(q, rotation), rotate(k, rotation), v))
    off = steps_off(*outs)
    print(f"{off:.1f} rounding steps apart after a shift of 1234 frames")
    assert 0 < off < SHALLOW


@pytest.mark.parametrize("frames, grid", [(4, (30, 52)), (3, (30, 52)), (1, (52, 30)), (5, (7, 9)), (4, (2, 3))])
@pytest.mark.parametrize("span", [1.0, 4.0])
def test_twins_are_rotated_to_the_centres_of_their_regions(frames, grid, span):
    plan = PackForcing(top_k_blocks=1, mid_span=span)
    twin = CompressedRope(GridRope(24, grid), plan, frames)
    places = compressed_positions(frames, grid, span)
    keys = torch.randn(1, len(places), 2, 24)
    expected = rope_reference(keys.double(), at_time(places, places[:, 0] + 8))
    off = steps_off(twin.at(8.0, twin.spatial(keys)), expected)
    print(f"{twin.tokens} tokens, {off:.1f} rounding steps from float64")
    assert off < SHALLOW
    if (frames, grid) == (4, (30, 52)):
        assert twin.tokens == 182
        assert places[0].tolist() == [0.5 * span / 4, 0.5 * 30 / 7 - 0.5, 1.5]
