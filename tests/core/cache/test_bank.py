"""The bank: what it forgets, what it fetches, what 8 bits cost, and the selectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from packforcing_core.cache.bank import CompressedRows, CompressedShape, LayerBank
from packforcing_core.cache.config import PackForcing
from packforcing_core.cache.select import SELECTORS, Question, choose
from packforcing_core.errors import PackForcingError
from tests.exactness import SHALLOW, steps_off
from tests.small import CONFIG, GRID, render_blocks, small_cache

SHAPE = (CONFIG.num_heads, CONFIG.head_dim)


def run(cache, blocks: int, seed: int = 0) -> list:
    """Random blocks and compressed blocks through the cache; the selection of each block."""
    selections = []
    generator = torch.Generator().manual_seed(seed)
    tokens = cache.partitions.frames_per_block * GRID[0] * GRID[1]
    for _ in range(blocks):
        view = cache.begin_block()
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *torch.randn(3, cache.shape.batch, tokens, *SHAPE, generator=generator))
        selections.append(view.selection())
        if cache.due_block is not None:
            with cache.commit_compressed() as writer:
                for layer in range(CONFIG.num_layers):
                    sizes = 3, cache.shape.batch, cache.shape.compressed_tokens, *SHAPE
                    writer.attend(layer, *torch.randn(sizes, generator=generator))
    return selections


def question(blocks=6, seed=0, block=9, layer=1) -> Question:
    generator = torch.Generator().manual_seed(5)
    keys = torch.randn(blocks, 1, 4, 2, 16, generator=generator)
    queries = torch.randn(1, 8, 2, 16, generator=generator)
    asked = queries.mean(1), queries, list(range(blocks)), keys.mean(2), keys.__getitem__, seed, block, layer
    return Question(*asked, running_query=torch.randn(1, 2, 16, generator=generator), count=3)


def test_only_misses_are_fetched(monkeypatch):
    policy = PackForcing(3, 3, 3, 8, selector="recency")
    cache = small_cache(policy, 3)
    run(cache, 12)
    fetches = []
    fetch = LayerBank.fetch
    monkeypatch.setattr(LayerBank, "fetch", lambda *asked: fetches.append(1) or fetch(*asked))
    run(cache, 10)
    fetched = len(fetches)
    blocks, layers = 10, CONFIG.num_layers
    print(f"{fetched} compressed blocks fetched for {blocks * layers} choices of 3 and as many of their passes")
    # The pass over a twin gets one block back that its block had selected; the next block gets the two newest.
    assert fetched == 3 * blocks * layers


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("storage", ["ram", "vram"])
def test_the_mid_slots_show_the_banks_keys_as_if_each_was_turned_alone(storage, batch):
    """Slots are turned together, those that stand right among them again; with 5 of 9 blocks many stay, many move."""
    cache = small_cache(PackForcing(3, 3, 5, 9, mid_span=1.5, selector="random", bank_storage=storage), 3, batch=batch)
    checked = 0
    for _ in range(14):
        run(cache, 1, seed=cache.next_block)
        view = cache.begin_block()
        queries = torch.randn(batch, 3 * GRID[0] * GRID[1], *SHAPE)
        for layer, kv in enumerate(cache.layers):
            view.choose(layer, view.queries(queries))
            shown = dict(zip(view.choices.get(layer, ()), view.window.mid_positions, strict=True))
            keys = {block: cache.mid._banks[layer].keys(cache.mid.blocks.index(block)) for block in shown}
            alone = [cache.mid.compressed_rope.at(position, keys[block]) for block, position in shown.items()]
            slots = [kv.k[:, kv.mid(slot)] for slot in range(len(shown))]
            assert all(any(torch.equal(own, slot) for slot in slots) for own in alone)
            checked += len(alone)
    print(f"{checked} compressed blocks bit-equal")
    assert checked > 80


def test_host_and_device_banks_show_the_same():
    made = [
        [b.latents for b in render_blocks(PackForcing(3, 3, 2, 4, bank_storage=s), 8)]
        for s in ("ram", "vram", "ram_int8", "vram_int8", "ram_int4", "vram_int4")
    ]
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made[2], made[3], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made[4], made[5], strict=True))
    for bits, ours in ((8, made[2]), (4, made[4])):
        error = (made[0][-1] - ours[-1]).abs().max().item()
        print(f"{bits}-bit bank: latents of block 7 differ by at most {error:.1e} of {made[0][-1].std():.2f}")
        assert 0 < error < 0.1


@pytest.mark.parametrize(("bits", "group", "limit"), [(8, 128, 0.01), (4, 32, 0.12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_bits_come_back_within_half_a_step(dtype, bits, group, limit):
    torch.manual_seed(0)
    rows = torch.randn(1, 50, 4, 128).to(dtype)
    rows[0, 0] = 0
    store = CompressedRows(CompressedShape(1, 50, 4, 128, dtype), 3, f"vram_int{bits}", torch.device("cpu"))
    store.write(1, rows)
    back = store.read(1)
    largest = rows.float().unflatten(-1, (-1, group)).abs().amax(-1)
    step = (largest / (2 ** (bits - 1) - 1)).repeat_interleave(group, dim=-1)
    rounding = torch.finfo(dtype).eps * rows.float().abs()
    error = (back.float() - rows.float()).abs()
    relative = (error.square().sum() / rows.float().square().sum()).sqrt().item()
    print(f"relative error {relative:.2%}, largest {(error / step.clamp(min=1e-9)).max().item():.2f} steps")
    assert (error <= 0.501 * step + rounding).all()
    assert 0 < relative < limit


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_runs_the_rollout_and_repeats_itself(selector):
    policy = PackForcing(3, 3, 2, 4, selector=selector)
    first, second = (render_blocks(policy, 7) for _ in range(2))
    assert [b.selection for b in first] == [b.selection for b in second]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, second, strict=True))
    assert [len(choice) for choice in first[-1].seen] == [2, 2]
    if selector == "recency":
        assert first[-1].selection == ((3, 4), (3, 4))


def test_selectors_score_as_they_say():
    q = question()
    keys = torch.stack([q.keys(i)[0] for i in range(6)])  # [blocks, tokens, heads, d]
    scores = torch.einsum("qhd,mkhd->mhqk", q.queries[0].double(), keys.double()) / 4
    expected = {
        "mean": scores.mean((1, 2, 3)),
        "future": torch.einsum("hd,mkhd->mkh", q.running_query[0], keys).mean((1, 2)) / 4,
        "attention_mass": scores.permute(1, 2, 0, 3).flatten(2).softmax(-1).unflatten(-1, (6, 4)).sum(-1).mean((0, 1)),
    }
    lengths = keys.double().mean(1).flatten(1).norm(dim=1)
    expected["cosine+newest"] = (expected["mean"] / lengths)[:-1]  # Of three places one is the newest block's.
    for name, wanted in expected.items():
        off = steps_off(SELECTORS[name](q)[: len(wanted)], wanted)
        print(f"{name}: {off:.1f} rounding steps from float64")
        assert off < SHALLOW
    draws = {tuple(SELECTORS["random"](question(**key))) for key in ({}, {"seed": 1}, {"block": 8}, {"layer": 0})}
    assert len(draws) == 4


def test_half_of_the_places_are_the_newest_blocks():
    q = question()
    mean = SELECTORS["mean"](q)

    def chosen(count: int) -> tuple[int, ...]:
        return choose(SELECTORS["mean+newest"](replace(q, count=count)), q.blocks, count)

    assert chosen(4) == (*choose(mean[:4], [0, 1, 2, 3], 2), 4, 5)
    assert chosen(1) == choose(mean, q.blocks, 1)
    assert chosen(6) == tuple(range(6))
    assert torch.equal(SELECTORS["cosine+newest"](replace(q, writes=True)), mean)
    assert SELECTORS["cosine+newest"](q)[-1] == torch.inf


def test_a_tie_goes_to_the_newer_block_and_the_chosen_are_in_order_of_time():
    assert choose([1.0, 3.0, 1.0, 1.0], [7, 2, 9, 4], 2) == (2, 9)
    assert choose([5.0, 5.0, 5.0], [3, 1, 2], 5) == (1, 2, 3)
    assert choose([1.0], [0], 0) == ()


def test_a_twin_that_never_came_is_missed():
    cache = small_cache(PackForcing(3, 3, 2, 4), 3)
    tokens = torch.randn(3, 1, 3 * GRID[0] * GRID[1], *SHAPE)
    for _ in range(3):
        with cache.commit(cache.begin_block()) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *tokens)
    with pytest.raises(PackForcingError, match="Block 1 has left the recent frames"):
        cache.begin_block()
    with (
        pytest.raises(PackForcingError, match="No block has to be compressed now"),
        small_cache(PackForcing(), 3).commit_compressed(),
    ):
        pass
