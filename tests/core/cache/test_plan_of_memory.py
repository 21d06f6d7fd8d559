"""The planned integers of every policy, and that allocation agrees with them to the byte."""

from __future__ import annotations

import math

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import POLICY_PRESETS, DeepForcing, Full, PackForcing, TetherCache, build_policy
from packforcing_core.cache.layer_kv import KVShape
from packforcing_core.cache.policies.packforcing import FULL_SPAN
from packforcing_core.cache.policy import AUTO
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry, compressed_grid
from packforcing_core.rope import GridRope
from tests.small import CONFIG, GRID, small_cache, small_shape

STORAGES = ["ram", "vram", "ram_int8", "vram_int8", "ram_int4", "vram_int4"]


def paper_shape() -> KVShape:
    geometry = VideoGeometry(832, 480, 16, 4, 120)
    assert geometry.compressed_tokens == 182
    return KVShape(30, 12, 128, geometry.tokens_per_frame, compressed_tokens=geometry.compressed_tokens)


def test_the_papers_configuration_gives_its_headline_numbers():
    shape, plan = paper_shape(), PackForcing().partitions(4)
    assert shape.attended_tokens(plan) == 27_872
    assert shape.cache_bytes(plan) == 21_632 * 184_320
    print(f"{shape.cache_bytes(plan) / 1e9:.2f} GB cached, bank {shape.bank_bytes(plan) / 1e9:.2f} GB")
    assert f"{shape.cache_bytes(plan) / 1e9:.2f}" == "3.99"
    assert f"{shape.host_bytes(plan) / 1e9:.1f}" == "5.4"


@pytest.mark.parametrize(
    "latent, grid",
    [((4, 60, 104), (2, 7, 13)), ((3, 60, 104), (2, 7, 13)), ((1, 60, 104), (1, 7, 13)), ((4, 104, 60), (2, 13, 7)),
     ((5, 10, 6), (3, 1, 1)), ((4, 90, 160), (2, 11, 20))],
)  # fmt: skip
def test_the_compressed_grid_fits_every_size(latent, grid):
    assert compressed_grid(*latent) == grid


@pytest.mark.parametrize("frames_per_block, sink, recent", [(4, 8, 4), (3, 9, 3), (1, 8, 4), (5, 10, 5), (16, 16, 16)])
def test_defaults_are_rounded_to_whole_blocks(frames_per_block, sink, recent):
    plan = PackForcing().partitions(frames_per_block)
    assert (plan.sink_frames, plan.recent_frames) == (sink, recent)


@pytest.mark.parametrize("frames_per_block", [1, 3, 4])
def test_the_automatic_span_fits_the_whole_window_into_21_positions(frames_per_block):
    plan = PackForcing(mid_span=AUTO).partitions(frames_per_block)
    window = plan.window(1000 * frames_per_block, banked=128)
    print(f"span {plan.bank.mid_span}, last position {window.current_positions[-1]}")
    assert window.current_positions[-1] == pytest.approx(20)
    assert PackForcing(mid_span=FULL_SPAN).partitions(4).window(4000, 128).current_positions[-1] == 79


@pytest.mark.parametrize("name", POLICY_PRESETS)
@pytest.mark.parametrize("frames_per_block", [1, 3, 4])
def test_every_preset_allocates_what_is_planned(name, frames_per_block):
    cache = small_cache(POLICY_PRESETS[name], frames_per_block, 60)
    assert cache.nbytes == cache.shape.buffer_bytes(cache.partitions)
    assert cache.host_nbytes == cache.shape.host_bytes(cache.partitions)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bank_bytes_are_those_allocated_mean_keys_included(storage, dtype):
    grid = (8, 12)
    tokens = math.prod(compressed_grid(4, 16, 24))
    shape = KVShape(3, 2, 32, 96, dtype, batch=2, compressed_tokens=tokens)
    plan = PackForcing(bank_storage=storage, recent_frames=8).partitions(4)
    cache = KVCache(plan, shape, GridRope(32, grid), sdpa)
    means = 3 * 160 * 2 * 2 * 32 * 4
    assert shape.bank_bytes(plan) == cache.mid.compressed_bytes + means
    assert cache.nbytes == shape.buffer_bytes(plan)
    assert (
        cache.host_nbytes == shape.host_bytes(plan) == (cache.mid.compressed_bytes if storage.startswith("ram") else 0)
    )
    if storage == "vram":
        assert shape.bank_bytes(plan) - means == 160 * tokens * 2 * 3 * 2 * 2 * 32 * dtype.itemsize


@pytest.mark.parametrize(("storage", "blocks"), [(storage, 300 if storage == "ram" else 80) for storage in STORAGES])
def test_attended_tokens_and_bytes_are_constant_from_block_20_on(storage, blocks):
    policy = PackForcing(bank_storage=storage, bank_blocks=32)
    cache, n = small_cache(policy, 4), GRID[0] * GRID[1]
    planned = cache.shape.buffer_bytes(cache.partitions), cache.shape.host_bytes(cache.partitions)
    made = torch.randn(3, 1, 4 * n, CONFIG.num_heads, CONFIG.head_dim)
    twin = torch.randn(3, 1, cache.shape.compressed_tokens, CONFIG.num_heads, CONFIG.head_dim)
    attended, sink = [], None
    for block in range(blocks):
        view = cache.begin_block()
        rows = cache.layers[0].attended(view.window)
        attended.append(rows.stop - rows.start)
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *(made + block * 1e-3))
        if cache.due_block is not None:
            with cache.commit_compressed() as writer:
                for layer in range(CONFIG.num_layers):
                    writer.attend(layer, *(twin - block * 1e-3))
        assert (cache.nbytes, cache.host_nbytes) == planned
        if block == 1:
            kv = cache.layers[0]
            sink_rows = kv.tokens(cache.partitions.slot(7), 8)
            sink = kv.k[:, sink_rows].clone()
    print(f"attended from block 20 on: {set(attended[19:])}; bytes {planned}")
    assert set(attended[19:]) == {cache.shape.attended_tokens(cache.partitions)}
    assert attended[18] < attended[19]
    assert torch.equal(cache.layers[0].k[:, sink_rows], sink)
    assert sorted(cache.mid.blocks) == list(range(blocks - 33, blocks - 1))


@pytest.mark.parametrize(
    "policy, frames_per_block, frames",
    [
        *((DeepForcing(), *sizes) for sizes in ((1, 20), (3, 19), (4, 20))),
        *((TetherCache(), *sizes) for sizes in ((1, 21), (3, 21), (4, 21))),
        (DeepForcing(sink_frames=4, recent_frames=5, budget_frames=11, window_frames=11), 4, 11),
    ],
    ids=repr,
)
def test_a_policy_that_drops_tokens_attends_to_as_many_as_planned(policy, frames_per_block, frames):
    """Counted are the keys that attention is given, by a cache of 60 latent frames."""
    seen = []

    def counted(q, k, v):
        seen.append(k.shape[1])
        return sdpa(q, k, v)

    partitions, n = policy.partitions(frames_per_block), GRID[0] * GRID[1]
    cache = KVCache(partitions, small_shape(frames_per_block), GridRope(CONFIG.head_dim, GRID), counted)
    torch.manual_seed(0)
    for _ in range(60 // frames_per_block):
        made = torch.randn(3, 1, frames_per_block * n, CONFIG.num_heads, CONFIG.head_dim)
        view = cache.begin_block()
        for layer in range(CONFIG.num_layers):
            view.attend(layer, *made)
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *made)
    print(f"{policy.name}, blocks of {frames_per_block}: {sorted({tokens // n for tokens in seen})} frames attended to")
    assert max(seen) == frames * n == cache.shape.attended_tokens(partitions)


@pytest.mark.parametrize("policy", [PackForcing(sink_frames=3), DeepForcing(), PackForcing(recent_frames=9)])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 9])
def test_a_short_clip_allocates_just_what_it_fills(policy, blocks):
    cache = small_cache(policy, 3, 3 * blocks)
    long = policy.partitions(3)
    assert cache.partitions.past_frames <= 3 * (blocks - 1)
    assert cache.nbytes <= small_shape(3).buffer_bytes(long)
    made = torch.randn(3, 1, 3 * GRID[0] * GRID[1], CONFIG.num_heads, CONFIG.head_dim)
    for block in range(blocks):
        view = cache.begin_block()
        window = long.window(3 * block, len(cache.mid.blocks) if cache.mid else 0)
        assert view.window.current_positions == window.current_positions
        writer = view
        if block + 1 < blocks:
            with cache.commit(view) as writer:
                for layer in range(CONFIG.num_layers):
                    writer.attend(layer, *made)
        else:
            view.attend(0, *made)
        if cache.due_block is not None:
            with cache.commit_compressed() as writer:
                for layer in range(CONFIG.num_layers):
                    writer.attend(layer, *made[:, :, : cache.shape.compressed_tokens])
    if cache.mid:
        assert len(window.mid_positions) == cache.partitions.top_k_blocks
        assert len(cache.mid.blocks) == cache.mid.plan.bank_blocks


@pytest.mark.parametrize(
    "settings, frames_per_block, message",
    [
        ({"sink_frames": 8}, 3, "8, which is not whole blocks of 3.* 6 or 9, or to -1, which chooses 9"),
        ({"recent_frames": 4}, 3, "4, which is not whole blocks of 3.* 3 or 6, or to -1, which chooses 3"),
        ({"recent_frames": 0}, 4, "recent_frames is 0"),
        ({"top_k_blocks": 17, "bank_blocks": 16}, 4, "more than the 16 of bank_blocks"),
        ({"bank_blocks": 0}, 4, "more than the 0 of bank_blocks"),
        ({"mid_span": -0.5}, 4, "mid_span is -0.5"),
        ({"mid_span": float("nan")}, 4, "mid_span of policy 'packforcing' is nan"),
        ({"selector": "best"}, 4, "'best'; expected one of mean"),
        ({"bank_storage": "disk"}, 4, "'disk'; expected one of ram, vram"),
        ({"top_k_blocks": 2.5}, 4, "2.5; expected a whole number"),
        ({"sink_frames": -2}, 4, "-2; expected"),
    ],
)
def test_bad_settings_are_refused_with_the_remedy(settings, frames_per_block, message):
    with pytest.raises(PackForcingError, match=message):
        build_policy("packforcing", **settings).partitions(frames_per_block)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"recent_frames": 2}, "counts the current block"),
        ({"budget_frames": 13}, "budget_frames is 13"),
        ({"budget_frames": 22}, "budget_frames is 22"),
    ],
)
def test_deep_forcing_refuses_what_does_not_add_up(settings, message):
    with pytest.raises(PackForcingError, match=message):
        DeepForcing(**settings).partitions(3)


@pytest.mark.parametrize(
    "settings", [{"sink_frames": 0}, {"top_k_blocks": 0}, {"top_k_blocks": 0, "bank_blocks": 0}, {"selector": "none"}]
)
def test_zero_is_legal(settings):
    plan = PackForcing(**settings).partitions(4)
    assert (plan.bank is None) == ("sink_frames" not in settings)
    assert small_shape(4).bank_bytes(PackForcing(top_k_blocks=0).partitions(4)) == 0


def test_a_twin_of_another_size_is_refused():
    shape = KVShape(2, 2, 64, 6, torch.float32, compressed_tokens=5)
    with pytest.raises(PackForcingError, match="compress to 2"):
        KVCache(PackForcing().partitions(4), shape, GridRope(64, GRID), sdpa)
    with pytest.raises(PackForcingError, match="compressed_tokens is 0"):
        KVShape(2, 2, 64, 6).buffer_bytes(PackForcing().partitions(4))
    assert KVShape(2, 2, 64, 6).bank_bytes(Full().partitions(4)) == 0
