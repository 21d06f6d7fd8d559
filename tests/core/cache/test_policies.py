"""Every cache policy against brute force; its bytes, and renders that go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import (
    POLICIES,
    DeepForcing,
    Full,
    MemRoPE,
    PackForcing,
    RollingSink,
    SinkWindow,
    TetherCache,
    Window,
)
from packforcing_core.cache.moments import aligned, measured, pooled
from packforcing_core.cache.policies.rolling_sink import shown_frame
from packforcing_core.cache.policies.tether_cache import admitted
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block, commit_due_block
from tests.policies import ROWS, SMALL
from tests.reference.frontier import admission, pulled, running_mean_affinity, statistics
from tests.reference.memory import affinity, compressed_positions, in_space
from tests.reference.wan import grid_positions, rope
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

ORACLES = {type(row.policy): row.oracle for row in ROWS if row.oracle}
CASES = [
    *((3, row.policy, 12) for row in ROWS if row.oracle),
    (3, TetherCache(), 22),
    (1, TetherCache(sink_frames=2, recent_frames=2, memory_frames=4), 24),
    (4, TetherCache(sink_frames=3, recent_frames=5, memory_frames=6), 20),
    (3, TetherCache(sink_frames=0, recent_frames=3, memory_frames=5, alignment=0.0, diversity=2.0), 20),
    (3, MemRoPE(), 22),
    (1, MemRoPE(sink_frames=2, recent_frames=3, slow_rate=0.05, fast_rate=0.5), 24),
    (4, MemRoPE(sink_frames=0, recent_frames=2), 20),
    (3, RollingSink(), 22),
    (1, RollingSink(window_frames=6), 24),
    (4, RollingSink(window_frames=13), 20),
]


def test_every_policy_has_a_row_and_brute_force():
    kinds = {type(policy) for policy in SMALL}
    assert kinds == set(POLICIES.values()), "add a row to tests/policies.py"
    elsewhere = {"test_packforcing.py": PackForcing, "test_deep_forcing.py": DeepForcing}
    assert {kind for kind in kinds if kind not in ORACLES} == set(elsewhere.values())
    assert all((Path(__file__).parent / name).exists() for name in elsewhere)


@pytest.mark.parametrize(("frames_per_block", "policy", "blocks"), CASES)
def test_every_pass_equals_attention_over_what_the_papers_formula_keeps(frames_per_block, policy, blocks):
    model = small_model()
    text = model.encode_text(small_context())
    oracle = ORACLES[type(policy)](policy, frames_per_block, CONFIG.num_layers, GRID)
    cache = small_cache(policy, frames_per_block, blocks * frames_per_block)
    worst, choices, attended = 0.0, 0, []
    for block in range(blocks):
        torch.manual_seed(block)
        noisy, latents = torch.randn(2, *block_shape(frames_per_block))
        cache.begin_block()  # A view that is given up leaves no trace.
        view = cache.begin_block()
        oracle.begin()
        for timestep in (900.0, 500.0):
            flows = [model.flow(noisy, frame_timesteps(timestep, noisy), text, h) for h in (view, oracle)]
            worst = max(worst, (flows[0] - flows[1]).abs().max().item())
        if isinstance(policy, TetherCache):
            assert [list(c) for c in view.selection()] == [chosen or [] for chosen in oracle.choices]
            choices += oracle.choices[0] is not None
        attended.append(view.window.past_frames + frames_per_block)
        commit_block(model, text, cache, view, latents, 0.0)
        oracle.mode = "commit"
        model.commit(latents, frame_timesteps(0.0, latents), text, oracle)
    print(f"max difference over {blocks} blocks: {worst:.1e}; frames in view {attended}")
    assert worst < 1e-4
    assert cache.nbytes == cache.shape.buffer_bytes(cache.partitions)
    if isinstance(policy, TetherCache):
        print(f"{choices} admissions; the narrowest was won by {oracle.narrowest:.1e}")
        assert choices >= min(10, blocks - 4)


FLAT_ELSEWHERE = Full, Window, SinkWindow, PackForcing, DeepForcing


@pytest.mark.parametrize(
    "policy",
    [
        *(PackForcing(3, 3, 2, 4, alignment=0.35), PackForcing(3, 3, 2, 4, selector="future")),
        *(p for p in SMALL if not isinstance(p, FLAT_ELSEWHERE)),
    ],
    ids=repr,
)
def test_memory_is_flat_at_the_planned_bytes_over_1000_blocks(policy):
    cache = small_cache(policy, 3)
    planned, n = cache.shape.buffer_bytes(cache.partitions), GRID[0] * GRID[1]
    made = torch.randn(3, 1, 3 * n, CONFIG.num_heads, CONFIG.head_dim)
    attended = set()
    for block in range(1000):
        view = cache.begin_block()
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *(made * (1 + block % 7)))
        if cache.due_block is not None:
            with cache.commit_compressed() as writer:
                for layer in range(CONFIG.num_layers):
                    writer.attend(layer, *made[:, :, : cache.shape.compressed_tokens])
        assert cache.nbytes == planned
        if block >= 20:
            rows = cache.layers[0].attended(view.window)
            attended.add(rows.stop - rows.start)
    print(f"{planned:,} bytes; attended {attended}")
    assert attended == {cache.shape.attended_tokens(cache.partitions)}


@pytest.mark.parametrize("policy", [*SMALL, PackForcing(3, 3, 2, 4, selector="future", alignment=0.35)], ids=repr)
@pytest.mark.parametrize("finished", [2, 5, 9])
def test_a_render_that_goes_on_is_the_one_that_never_stopped(policy, finished):
    whole = render_blocks(policy, 12)
    rest = render_blocks(policy, 12, known=whole[:finished])
    for a, b in zip(whole[finished:], rest[-(12 - finished) :], strict=True):
        assert torch.equal(a.latents, b.latents)
        assert a.selection == b.selection


@pytest.mark.parametrize("policy", SMALL, ids=repr)
def test_parts_in_8_bits_stay_close(policy):
    plain, packed = (render_blocks(p, 10) for p in (policy, replace(policy, kv_int8="all")))
    difference = max((a.latents - b.latents).abs().max().item() for a, b in zip(plain, packed, strict=True))
    print(f"max difference in latents {difference:.1e}")
    assert 0 < difference < 5e-2


@pytest.mark.parametrize("policy", [TetherCache(2, 3, 4), RollingSink(9), DeepForcing(2, 3, 6, 9), MemRoPE(2, 3)])
def test_after_a_restart_the_past_is_what_was_committed_again(policy):
    """Blocks that are committed again leave what committing them alone would; averages stay, as a bank does."""
    model = small_model()
    text = model.encode_text(small_context())
    torch.manual_seed(4)
    clean = [torch.randn(block_shape(3)) for _ in range(9)]
    cache = small_cache(policy, 3)
    for latents in clean:
        commit_block(model, text, cache, cache.begin_block(), latents, 0.0)
    again = cache.restart()
    fresh = small_cache(policy, 3)
    for block in again:
        for one in (cache, fresh):
            commit_block(model, text, one, one.begin_block(), clean[block], 0.0)
    noisy = torch.randn(block_shape(3))
    flows = [model.flow(noisy, frame_timesteps(900.0, noisy), text, one.begin_block()) for one in (cache, fresh)]
    print(f"blocks {again} again")
    assert torch.equal(*flows) == (not isinstance(policy, MemRoPE))


def averaged(policy: MemRoPE, frames_per_block: int) -> tuple[Callable[[KVCache, int], None], KVCache]:
    """A cache with nine blocks, and what commits such a block, or a tenth, to any cache."""
    model = small_model()
    text = model.encode_text(small_context())
    torch.manual_seed(4)
    clean = [torch.randn(block_shape(frames_per_block)) for _ in range(10)]

    def commit(cache: KVCache, block: int) -> None:
        commit_block(model, text, cache, cache.begin_block(), clean[block], 0.0)

    cache = small_cache(policy, frames_per_block)
    for block in range(9):
        commit(cache, block)
    return commit, cache


@pytest.mark.parametrize(("policy", "frames_per_block"), [(MemRoPE(2, 4), 3), (MemRoPE(3, 4), 4), (MemRoPE(3, 2), 3)])
def test_frames_that_are_committed_again_count_once_in_the_averages(policy, frames_per_block):
    """Blocks in view have frames that left it before: those are in the averages already."""
    commit, cache = averaged(policy, frames_per_block)
    before = [averages.clone() for averages in cache.rule._averages]
    for block in cache.restart():
        commit(cache, block)
    assert all(map(torch.equal, before, cache.rule._averages))
    commit(cache, 9)
    assert not any(map(torch.equal, before, cache.rule._averages))


@pytest.mark.parametrize(("policy", "frames_per_block"), [(MemRoPE(5, 1), 4), (MemRoPE(5, 2), 4), (MemRoPE(4, 1), 3)])
def test_a_flush_leaves_the_averages_of_a_fresh_cache(policy, frames_per_block):
    commit, cache = averaged(policy, frames_per_block)
    fresh = small_cache(policy, frames_per_block)
    for block in cache.restart(flush=True):
        for one in (cache, fresh):
            commit(one, block)
    assert all(map(torch.equal, fresh.rule._averages, cache.rule._averages))


def test_the_walk_goes_forward_and_back():
    assert [shown_frame(frame, 4) for frame in range(12)] == [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3]


def test_admission_equals_the_formula_and_diversity_spreads():
    torch.manual_seed(0)
    for _ in range(50):
        relevance, frames = torch.randn(12), sorted(torch.randperm(200)[:12].tolist())
        chosen, _ = admission(relevance.tolist(), frames, 7, 0.35)
        assert list(admitted(relevance, frames, 7, 0.35)) == chosen
    # Of three alike and near each other and one far away, the far one stays once diversity counts.
    relevance, frames = torch.tensor([1.0, 1.0, 1.0, 0.9]), [0, 1, 2, 40]
    assert 3 not in admitted(relevance, frames, 3, 0.0)
    assert 3 in admitted(relevance, frames, 3, 0.35)


def test_alignment_equals_the_formula_and_pools_as_if_concatenated():
    torch.manual_seed(1)
    frames = [torch.randn(2, 2, n, 3, 8) * (1 + i) + i for i, n in enumerate((6, 6, 4))]  # [k and v, B, tokens, ...]
    pool = pooled(torch.stack([measured(*f) for f in frames]), [6, 6, 4])
    for part in (0, 1):
        mean, deviation = statistics(torch.cat([f[part] for f in frames], dim=1))
        assert torch.allclose(pool[2 * part], mean[:, 0].float(), rtol=1e-5, atol=1e-6)
        assert torch.allclose(pool[2 * part + 1].sqrt(), deviation[:, 0].float(), rtol=1e-5, atol=1e-6)
    k, v = torch.randn(2, 2, 6, 3, 8)
    trusted = torch.cat(frames, dim=2)
    for got, x, t in zip(aligned(k, v, pool, 0.35), (k, v), trusted, strict=True):
        difference = (got - pulled(x, t, 0.35)).abs().max().item()
        print(f"max difference {difference:.1e}")
        assert difference < 1e-5


@pytest.mark.parametrize("frames_per_block", [1, 3, 4])
def test_compressed_blocks_enter_the_bank_aligned_with_sink_and_bank(frames_per_block):
    """What the bank holds, against the formula on what the passes made, over 20 blocks."""
    policy = PackForcing(frames_per_block, frames_per_block, 2, 4, bank_storage="vram", alignment=0.35)
    model = small_model()
    text = model.encode_text(small_context())
    cache = small_cache(policy, frames_per_block)
    compressor, waiting, sink, bank, worst = SmallCompressor(frames_per_block), {}, None, {}, 0.0
    spatial = in_space(grid_positions([0.0] * frames_per_block, GRID))
    offsets = in_space(compressed_positions(frames_per_block, GRID, 1.0))
    for block in range(20):
        torch.manual_seed(block)
        latents = torch.randn(block_shape(frames_per_block))
        seen = Seen(cache.begin_block())
        model.flow(latents, frame_timesteps(0.0, latents), text, seen)
        commit_block(model, text, cache, seen.history, latents, 0.0)
        if block == 0:
            sink = rope(seen.k, spatial), seen.v
        waiting[block] = latents, None
        due = cache.due_block
        if due is None:
            continue
        with cache.commit_compressed() as writer:
            twin = Seen(writer)
            tokens = compressor.tokens(*waiting[due], False)
            model.commit_tokens(tokens, torch.zeros(1, 1), text, twin)
        if len(bank) == 4:
            del bank[min(bank)]
        trusted = [torch.cat([sink[part], *(kv[part] for kv in bank.values())], dim=1) for part in (0, 1)]
        bank[due] = tuple(pulled(x, t, 0.35) for x, t in zip((rope(twin.k, offsets), twin.v), trusted, strict=True))
        stored = cache.mid._banks[0].keys(cache.mid.blocks.index(due))
        assert torch.isfinite(bank[due][0]).all()
        worst = max(worst, (stored - bank[due][0]).abs().max().item())
    print(f"max difference of stored keys {worst:.1e}")
    assert worst < 1e-4
    assert len(cache.mid.blocks) == 4


class Seen:
    """A history that notes what layer 0 was given."""

    def __init__(self, history):
        self.history = history

    def attend(self, layer, q, k, v):
        if layer == 0:
            self.q, self.k, self.v = q, k, v
        return self.history.attend(layer, q, k, v)

    def keep(self, layer, q, k, v):
        self.history.keep(layer, q, k, v)


@pytest.mark.parametrize("frames_per_block", [1, 3, 4])
def test_the_future_selector_asks_with_the_mean_of_all_queries(frames_per_block):
    b = frames_per_block
    policy = PackForcing(b, b, 2, 6, selector="future", bank_storage="vram")
    model = small_model()
    text = model.encode_text(small_context())
    cache, compressor, waiting = small_cache(policy, b), SmallCompressor(b), {}
    spatial = in_space(grid_positions([0.0] * b, GRID))
    asked, chosen = [], 0
    for block in range(20):
        torch.manual_seed(block)
        noisy, latents = torch.randn(2, *block_shape(b))
        view = Seen(cache.begin_block())
        model.flow(noisy, frame_timesteps(900.0, noisy), text, view)
        blocks = list(cache.mid.blocks)
        if view.history.window.chooses:
            queries = [*asked, rope(view.q, spatial)]
            keys = [cache.mid._banks[0].keys(slot) for slot in range(len(blocks))]
            scores = {m: running_mean_affinity(queries, k) for m, k in zip(blocks, keys, strict=True)}
            best = sorted(sorted(scores, key=lambda m: (scores[m], m), reverse=True)[:2])
            assert list(view.history.selection()[0]) == best
            chosen += len(blocks) > 2
        clean = Seen(cache.begin_block(view.history.selection()))
        model.flow(latents, frame_timesteps(0.0, latents), text, clean)
        asked.append(rope(clean.q, spatial))
        commit_block(model, text, cache, view.history, latents, 0.0)
        waiting[block] = compressor.tokens(latents, None, block == 0)
        commit_due_block(model, text, cache, waiting)
    assert chosen >= 10


@pytest.mark.parametrize("frames_per_block", [1, 3, 4])
def test_a_block_selects_by_direction_and_age_and_again_by_affinity_when_it_is_committed(frames_per_block):
    b = frames_per_block
    policy = PackForcing(b, b, 3, 6, selector="cosine+newest", bank_storage="vram")
    model = small_model()
    text = model.encode_text(small_context())
    cache, compressor, waiting = small_cache(policy, b), SmallCompressor(b), {}
    spatial = in_space(grid_positions([0.0] * b, GRID))
    recent, sampled, written = [], 0, 0
    for block in range(20):
        torch.manual_seed(block)
        noisy, latents = torch.randn(2, *block_shape(b))
        view = Seen(cache.begin_block())
        model.flow(noisy, frame_timesteps(900.0, noisy), text, view)
        blocks = list(cache.mid.blocks)
        selects = view.history.window.chooses
        keys = {m: cache.mid._banks[0].keys(slot) for slot, m in enumerate(blocks)} if selects else {}

        def best(queries, count, divided, keys=keys):
            lengths = {m: k.double().mean(1).norm().item() if divided else 1.0 for m, k in keys.items()}
            scores = {m: affinity(torch.cat(queries, 1), k) / lengths[m] for m, k in keys.items()}
            return sorted(sorted(keys, key=lambda m: (scores[m], m), reverse=True)[:count])

        if selects:
            newest = max(blocks)
            others = [m for m in best([*recent, rope(view.q, spatial)], len(blocks), True) if m != newest]
            ranked = {m: k for m, k in keys.items() if m in others}
            chosen = best([*recent, rope(view.q, spatial)], min(2, len(others)), True, ranked)
            assert list(view.history.selection()[0]) == sorted([*chosen, newest][-3:])
            sampled += len(blocks) > 3
        clean = Seen(cache.begin_block(view.history.selection()))
        model.flow(latents, frame_timesteps(0.0, latents), text, clean)
        before = view.history.selection()
        commit_block(model, text, cache, view.history, latents, 0.0)
        if selects:
            assert list(view.history.selection()[0]) == best([*recent, rope(clean.q, spatial)], 3, False)
            written += view.history.selection() != before
        recent = [rope(clean.q, spatial)]
        waiting[block] = compressor.tokens(latents, None, block == 0)
        commit_due_block(model, text, cache, waiting)
    print(f"{sampled} selections among more than three blocks, {written} blocks selected others when committed")
    assert sampled >= 10
    assert written >= 5


@pytest.mark.parametrize("policy", [TetherCache(), MemRoPE(), RollingSink()])
def test_a_rolling_rollout_is_refused_with_the_remedy(policy):
    with pytest.raises(PackForcingError, match=f"{policy.name}.*self-forcing"):
        policy.partitions(3, 5)


def test_recorded_choices_that_do_not_fit_are_refused():
    made = render_blocks(TetherCache(2, 3, 4), 6)
    with pytest.raises(PackForcingError, match="does not fit: expected 5 kept frames"):
        render_blocks(TetherCache(1, 3, 5), 7, known=made)
