"""A cache that was saved and restored goes on bit for bit, under every policy and from every block."""

from __future__ import annotations

import json

import pytest
import torch

from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import AUTO, DeepForcing, Full, PackForcing, Policy, SinkWindow, Window
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import BlockDone, Twins, rollout
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
    Full(),
    Window(7),
    SinkWindow(9, 3),
    SinkWindow(8, 2, realign=False),
    DeepForcing(sink_frames=3, recent_frames=4, budget_frames=8, window_frames=12),
    PackForcing(**BANK),
    PackForcing(**BANK, mid_span=AUTO, eviction="least_selected", bank_storage="device"),
    PackForcing(**BANK, selector="best_row", bank_storage="host_int8"),
    PackForcing(3, 6, 2, 4, bank_storage="device_int8"),
    SinkWindow(9, 3, kv_int8="all"),
    DeepForcing(3, 4, 8, 12, kv_int8="all"),
    PackForcing(**BANK, mid_span=AUTO, kv_int8="all"),
    PackForcing(3, 6, 2, 4, bank_storage="host_int8", kv_int8="sink+mid"),
]
BLOCKS, FRAMES = 9, 3


class Render:
    """One rollout of the small model, whose cache and twins can be saved between two blocks."""

    def __init__(self, policy: Policy, blocks: int = BLOCKS):
        self.model, self.blocks = small_model(), blocks
        self.cache: KVCache = small_cache(policy, FRAMES, blocks * FRAMES)
        self.twins = Twins(SmallCompressor(FRAMES), SmallDecoder())

    def events(self, known=(), selections=()):
        noise = seeded_noise(7, block_shape(FRAMES))
        text = self.model.encode_text(small_context())
        events = rollout(self.model, text, self.cache, noise, DENOISING, self.blocks, known, selections, self.twins)
        return (event for event in events if isinstance(event, BlockDone))

    def saved(self):
        """As it comes back from a file: nothing in it is shared with the render."""
        tensors, plain = self.cache.snapshot()
        tensors = {name: tensor.clone() for name, tensor in (tensors | self.twins.snapshot()).items()}
        return tensors, json.loads(json.dumps(plain))

    def restore(self, saved) -> None:
        tensors, plain = saved
        self.cache.restore(tensors, plain)
        self.twins.restore(tensors, torch.device("cpu"))


def plain(done: BlockDone) -> list[list[int]]:
    return [list(choice) for choice in done.selection]


def same(a: list[BlockDone], b: list[BlockDone]) -> float:
    assert [done.block for done in a] == [done.block for done in b]
    assert [plain(done) for done in a] == [plain(done) for done in b]
    return max((x.latents - y.latents).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_restored_cache_goes_on_bit_for_bit_from_any_block(policy):
    unbroken, saves = Render(policy), []
    made = []
    for done in unbroken.events():
        made.append(done)
        saves.append(unbroken.saved() if done.block + 1 < BLOCKS else None)
    worst = 0.0
    for block in range(1, BLOCKS):
        resumed = Render(policy)
        resumed.restore(saves[block - 1])
        worst = max(worst, same(list(resumed.events()), made[block:]))
    print(f"max difference after a restore: {worst:.1e}")
    assert worst == 0


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_snapshot_stays_what_it_was(policy):
    render, taken = Render(policy), None
    for done in render.events():
        if done.block == BLOCKS // 2:
            taken, _ = render.cache.snapshot()
            then = {name: tensor.clone() for name, tensor in taken.items()}
    changed = [name for name, tensor in taken.items() if not torch.equal(tensor, then[name])]
    assert not changed


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_replayed_blocks_between_the_snapshot_and_the_last_known_one_are_exact(policy):
    unbroken, made, saved = Render(policy), [], None
    for done in unbroken.events():
        made.append(done)
        if done.block == 3:
            saved = unbroken.saved()
    for start in (0, 4):
        resumed = Render(policy)
        if start:
            resumed.restore(saved)
        known = made[:7]
        again = list(resumed.events([done.latents for done in known], [done.selection for done in known]))
        assert [done.reused for done in again] == [True] * (7 - start) + [False] * (BLOCKS - 7)
        difference = same(again, made[start:])
        print(f"from block {start}: max difference {difference:.1e}")
        assert difference == 0


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_longer_clip_goes_on_from_the_snapshot_of_a_shorter_one(policy):
    """Where every slot the longer plan needs was kept; otherwise the refusal says so and a replay is exact."""
    longer = list(Render(policy).events())
    shorter, saved = Render(policy, 6), None
    for done in shorter.events():
        saved = shorter.saved() if done.block == 4 else saved
    resumed = Render(policy)
    resumed.restore(saved)
    difference = same(list(resumed.events()), longer[5:])
    print(f"max difference: {difference:.1e}")
    assert difference == 0


def test_a_snapshot_in_the_middle_of_a_block_is_refused():
    render = Render(PackForcing(**BANK))
    next(iter(render.events()))
    view = render.cache.begin_block()
    with pytest.raises(RuntimeError, match="stop"), render.cache.commit(view):
        raise RuntimeError("stop")
    with pytest.raises(PackForcingError, match="between blocks"):
        render.cache.snapshot()


@pytest.mark.parametrize("damage", ["drop a tensor", "cut a tensor", "another plan", "positions", "nothing in it"])
def test_a_damaged_or_foreign_snapshot_is_refused(damage):
    render = Render(PackForcing(**BANK))
    for done in render.events():
        if done.block == 6:
            tensors, plain = render.saved()
    other = Render(PackForcing(**BANK))
    if damage == "drop a tensor":
        del tensors["1.k.past"]
    elif damage == "cut a tensor":
        tensors["0.bank.keys.rows"] = tensors["0.bank.keys.rows"][..., :3]
    elif damage == "another plan":
        other = Render(PackForcing(3, 6, 2, 3))
    elif damage == "positions":
        plain["positions"] = [[1]]
    else:
        tensors, plain = {}, {}
    with pytest.raises(PackForcingError, match="does not fit or is damaged"):
        other.restore((tensors, plain))
