"""The rolling rollout against the definition by brute force, and what must hold of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from packforcing_core.cache.config import DeepForcing, Full, PackForcing, SinkWindow, Window
from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.denoising import BlockDone, Denoising, StepDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
from packforcing_core.sampler.schedule import Schedule
from tests.exactness import DEEP, steps_off
from tests.reference.memory import PackForcingOracle
from tests.reference.rolling import EveryKey, MaskedPasses, plain_rolling
from tests.small import (
    CONFIG,
    GRID,
    SmallCompressor,
    SmallDecoder,
    block_shape,
    small_cache,
    small_context,
    small_model,
)

THREE = Denoising(Schedule.warped((1000.0, 750.0, 500.0), 5.0), rolling=True)
FOUR = Denoising(Schedule.warped((1000.0, 750.0, 500.0, 250.0), 5.0), rolling=True)

# Nothing is hidden; the window alone; some recent frames stay in view, whole blocks or not; gap left open.
WINDOWS = [Full(), Window(9), Window(13), SinkWindow(12, 3), SinkWindow(15, 3), SinkWindow(14, 2), SinkWindow(21, 3)]
VIDEO_CLOCK = [Full(), Window(9), Window(13), SinkWindow(12, 3, realign=False), SinkWindow(14, 2, realign=False)]
BANKS = [PackForcing(3, 3, 2, 4), PackForcing(0, 6, 2, 3, mid_span=-1)]


def parts(policy):
    """Sink and window of a window policy, None where all is seen."""
    return (0, None) if isinstance(policy, Full) else (getattr(policy, "sink_frames", 0), policy.window_frames)


def cache_for(policy, denoising: Denoising, blocks: int, size: int = 3):
    return small_cache(policy, size, blocks * size, current_blocks=denoising.window_blocks)


def roll(policy, blocks: int, known=(), denoising: Denoising = THREE, size: int = 3, noise=None, compression=None):
    model = small_model()
    cache = cache_for(policy, denoising, blocks, size)
    noise = noise or seeded_noise(7, block_shape(size))
    compression = compression or Compression(SmallCompressor(size), SmallDecoder())
    found = {done.block: done for done in known}
    return rollout(model, small_context(), cache, noise, denoising, blocks, found.get, compression)


@cache
def rolled(policy, blocks: int) -> list:
    """The events of a plain roll, made once for all tests that only read them."""
    return list(roll(policy, blocks))


def done(events) -> list[BlockDone]:
    return [event for event in events if isinstance(event, BlockDone)]


def latents(events) -> list[Tensor]:
    return [event.latents for event in done(events)]


def most_steps_off(ours: list[Tensor], expected: list[Tensor]) -> float:
    off = [steps_off(*pair) for pair in zip(ours, expected, strict=True)]
    print(f"rounding steps by block: {', '.join(f'{s:.1f}' for s in off)}, deviation {expected[-1].std():.2f}")
    return max(off)


@pytest.mark.parametrize("policy", VIDEO_CLOCK, ids=repr)
@pytest.mark.parametrize(("size", "denoising"), [(3, THREE), (1, FOUR)], ids=["3x3", "1x4"])
def test_every_window_is_one_masked_pass_over_all_clean_frames_and_the_window(policy, size, denoising):
    model, blocks, (sink, window) = small_model(), 7, parts(policy)
    schedule = denoising.schedule
    passes = MaskedPasses(model.net, CONFIG, small_context(), schedule.timesteps, GRID, size, sink, window)
    noise = seeded_noise(7, block_shape(size))
    expected = plain_rolling(passes.predict, passes.commit, noise, schedule.sigmas, blocks)
    assert most_steps_off(latents(roll(policy, blocks, denoising=denoising, size=size)), expected) < DEEP


@pytest.mark.parametrize("policy", [*WINDOWS, SinkWindow(14, 2, realign=False)], ids=repr)
@pytest.mark.parametrize(("size", "denoising"), [(3, THREE), (3, FOUR), (1, FOUR)], ids=["3x3", "3x4", "1x4"])
def test_it_is_the_definition_with_every_key_kept_and_rotated_from_scratch(policy, size, denoising):
    model, blocks, (sink, window) = small_model(), 10, parts(policy)
    if window is not None and window < sink + size * denoising.window_blocks:
        window = sink + size * denoising.window_blocks  # As narrow as it can be: nothing recent in view.
        policy = replace(policy, window_frames=window)
    text, schedule = model.encode_text(small_context()), denoising.schedule
    keys = EveryKey(CONFIG.num_layers, GRID, sink, window, gapless=getattr(policy, "realign", False))

    def predict(block, noisy, steps):
        timesteps = torch.tensor([[schedule.timesteps[step] for step in steps for _ in range(size)]])
        return model.flow(torch.cat(noisy, dim=2), timesteps, text, keys).split(size, dim=2)

    def commit(block, x0):
        keys.keeps = True
        model.commit(x0, torch.zeros(1, size), text, keys)
        keys.keeps = False

    expected = plain_rolling(predict, commit, seeded_noise(7, block_shape(size)), schedule.sigmas, blocks)
    assert most_steps_off(latents(roll(policy, blocks, denoising=denoising, size=size)), expected) < DEEP


@pytest.mark.parametrize("policy", BANKS, ids=repr)
def test_a_bank_serves_windows_as_the_definition_says(policy):
    """A window selects at its one call, with all its queries; its first block's commit sees the same selection."""
    model, blocks, (oracle, due) = small_model(), 10, bank_oracle(policy)
    text, compressor, clean = model.encode_text(small_context()), SmallCompressor(3), {}

    def predict(block, noisy, steps):
        oracle.block, oracle.mode = block, "read"
        timesteps = torch.tensor([[THREE.schedule.timesteps[step] for step in steps for _ in range(3)]])
        if len(noisy) < len(THREE.schedule):
            assert not any(oracle.compressed)
        return model.flow(torch.cat(noisy, dim=2), timesteps, text, oracle).split(3, dim=2)

    def commit(block, x0):
        clean[block], oracle.block, oracle.mode = x0, block, "commit"
        model.commit(x0, torch.zeros(1, 3), text, oracle)
        if due(block) is not None:
            oracle.block, oracle.mode = due(block), "twin"
            tokens = compressor.tokens(clean[due(block)], None, False)
            model.commit_tokens(tokens, torch.zeros(1, 1), text, oracle)

    expected = plain_rolling(predict, commit, seeded_noise(7, block_shape(3)), THREE.schedule.sigmas, blocks)
    ours = done(roll(policy, blocks, compression=Compression(SmallCompressor(3))))
    assert most_steps_off([b.latents for b in ours], expected) < DEEP
    chosen = [[list(choice) for choice in b.selection] for b in ours]
    assert chosen == [[selected[block] for selected in oracle.selected] for block in range(blocks)]
    assert sum(len(choice) for choices in chosen for choice in choices) > 2 * CONFIG.num_layers


def bank_oracle(policy: PackForcing):
    """The memory by brute force, and which block's twin is due after a commit."""
    plan = policy.partitions(3, THREE.window_blocks)
    bank = plan.bank
    sizes = plan.sink_frames, plan.recent_frames, bank.top_k_blocks, bank.bank_blocks, bank.mid_span

    def due(block: int) -> int | None:
        leaving = block - plan.recent_frames // 3
        return leaving if leaving * 3 >= plan.sink_frames else None

    return PackForcingOracle(3, *sizes, CONFIG.num_layers, GRID), due


def test_one_step_is_the_block_rollout():
    """Where a window is one block there is nothing to roll."""
    schedule = Schedule.warped((1000.0,), 5.0)
    rolled = latents(roll(SinkWindow(9, 3), 6, denoising=Denoising(schedule, rolling=True)))
    model = small_model()
    noise = seeded_noise(7, block_shape(3))
    plain = latents(
        rollout(model, small_context(), small_cache(SinkWindow(9, 3), 3, 18), noise, Denoising(schedule), 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(rolled, plain, strict=True))


@pytest.mark.parametrize("policy", [*WINDOWS, *BANKS], ids=repr)
def test_the_beginning_of_a_long_render_is_the_short_render(policy):
    """To its very last block: blocks past the end are rolled too."""
    long = latents(rolled(policy, 9))
    for blocks in (1, 2, 4, 8):
        short = latents(rolled(policy, blocks))
        assert most_steps_off(short, long[:blocks]) == 0


@pytest.mark.parametrize("policy", [*WINDOWS, *BANKS], ids=repr)
def test_a_render_goes_on_from_known_blocks_and_those_in_flight_as_if_never_stopped(policy):
    whole = done(rolled(policy, 9))
    for after in (1, 4, 8):
        known = done(rolled(policy, after))  # Extended: it was planned to end here.
        resumed = done(roll(policy, 9, known=known))
        assert most_steps_off([b.latents for b in resumed], [b.latents for b in whole]) == 0
        assert [b.selection for b in resumed] == [b.selection for b in whole]
        assert [b.reused for b in resumed] == [block < after for block in range(9)]
        assert all(torch.equal(a.video, b.video) for a, b in zip(whole, resumed, strict=True))


def test_known_blocks_without_those_in_flight_are_refused_before_anything_is_made():
    known = [BlockDone(0, torch.zeros(block_shape(3)))]
    with pytest.raises(PackForcingError, match=r"Block 0 is known, but not the 2 noisy blocks after it.*in_flight"):
        list(roll(SinkWindow(12, 3), 4, known=known))
    longer = done(roll(SinkWindow(15, 3), 1, denoising=FOUR))
    with pytest.raises(PackForcingError, match="made with as many steps"):
        list(roll(SinkWindow(15, 3), 4, known=longer))
    assert len(done(roll(SinkWindow(12, 3), 1, known=known))) == 1


def test_events_come_once_a_call_and_name_the_windows_first_block():
    told = [
        (event.block, event.step, event.steps) if isinstance(event, StepDone) else event.block
        for event in roll(Full(), 4)
    ]
    assert told == [(0, 0, 3), (0, 1, 3), (0, 2, 3), 0, (1, 2, 3), 1, (2, 2, 3), 2, (3, 2, 3), 3]
    assert [THREE.calls(block) for block in range(4)] == [3, 1, 1, 1]


def test_between_two_events_nothing_runs_and_the_last_block_is_not_committed():
    drawn, plain = [], seeded_noise(7, block_shape(3))

    def noise(block: int, step: int) -> Tensor:
        drawn.append((block, step))
        return plain(block, step)

    model, cache = small_model(), cache_for(Full(), THREE, 3)
    events = rollout(model, small_context(), cache, noise, THREE, 3)
    assert drawn == []
    next(events)
    assert drawn == [(0, 0)]
    next(events)
    assert sorted(drawn) == [(0, 0), (0, 1), (1, 0)]
    list(events)
    assert len(drawn) == len(set(drawn))
    assert cache.committed_frames == 6


def test_blocks_in_flight_are_as_many_as_steps_less_one():
    assert {b.in_flight.shape[2] for b in done(roll(Full(), 3))} == {6}
    one_step = Denoising(Schedule.warped((1000.0,), 5.0), rolling=True)
    assert {b.in_flight for b in done(roll(Full(), 3, denoising=one_step))} == {None}


@pytest.mark.parametrize("policy", [*WINDOWS, SinkWindow(14, 2, realign=False), *BANKS], ids=repr)
@pytest.mark.parametrize("blocks", [1, 2, 4, 9])
def test_what_is_allocated_and_attended_is_what_was_planned(policy, blocks):
    cache = cache_for(policy, THREE, blocks)
    planned, allocated = cache.shape.buffer_bytes(cache.partitions), cache.nbytes
    assert allocated == planned
    attended = []
    plain = cache.attention
    cache.attention = lambda q, k, v: attended.append((q.shape[1], k.shape[1])) or plain(q, k, v)
    model = small_model()
    noise = seeded_noise(7, block_shape(3))
    list(rollout(model, small_context(), cache, noise, THREE, blocks, compression=Compression(SmallCompressor(3))))
    windows = [k for q, k in attended if q == 3 * 3 * 6]
    commits = [k - q for q, k in attended if q == 3 * 6]
    most = cache.shape.attended_tokens(cache.partitions)
    past = cache.shape.cache_bytes(cache.partitions) // (2 * cache.shape.row_bytes)
    print(f"{planned} bytes, windows see {max(windows)} of {most} tokens, commits {max(commits, default=0)} of {past}")
    assert max(windows) == most
    assert max(commits, default=0) <= past


def test_a_window_policy_shows_as_many_frames_however_many_blocks_roll():
    policy, n = SinkWindow(21, 3), 6
    one, five = (policy.partitions(3, blocks) for blocks in (1, 5))
    shape = cache_for(policy, THREE, 20).shape
    assert shape.attended_tokens(one) == shape.attended_tokens(five) == 21 * n
    assert (one.recent_frames, five.recent_frames, five.rolling_recent_frames, five.copied_frames) == (15, 15, 3, 3)
    assert [p.position for p in five.window(30, blocks=5).copied] == [3, 4, 5]
    assert five.window(30, blocks=5).current_positions == tuple(range(6, 21))
    assert five.window(30).current_positions == one.window(30).current_positions == (18, 19, 20)


def test_what_cannot_roll_is_refused_with_a_remedy():
    with pytest.raises(PackForcingError, match=r"deep_forcing.*rolling.*self-forcing"):
        DeepForcing().partitions(3, 4)
    with pytest.raises(PackForcingError, match=r"window_frames is 12.*5 blocks of 3 that roll.*at least 18"):
        SinkWindow(12, 3).partitions(3, 5)
    with pytest.raises(PackForcingError, match="one schedule for all blocks"):
        Denoising(THREE.schedule, first_block=FOUR.schedule, rolling=True)
    cache = cache_for(SinkWindow(12, 3), THREE, 9)
    with pytest.raises(PackForcingError, match="view of 4 blocks; this cache has room for 3"):
        cache.begin_block(blocks=4)
    two = cache.begin_block(blocks=2)
    with pytest.raises(PackForcingError, match="cannot be committed at once"), cache.commit(two):
        pass


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_first_block_that_is_lost(bad):
    plain, made = seeded_noise(7, block_shape(3)), []

    def noise(block: int, step: int) -> Tensor:
        return plain(block, step).masked_fill_(torch.tensor(block == 5), bad)

    with pytest.raises(PackForcingError, match=r"Block 3 .*not finite.*blocks before it are kept.*bf16"):
        made.extend(event.block for event in roll(SinkWindow(12, 3), 8, noise=noise) if isinstance(event, BlockDone))
    assert made == [0, 1, 2]


def test_the_families_that_roll_do():
    rolling = {name: Denoising.of_family(family) for name, family in FAMILIES.items() if family.rollout == "rolling"}
    assert {name: denoising.window_blocks for name, denoising in rolling.items()} == {
        "rolling-forcing": 5,
        "causal-forcing-long": 4,
        "wave-forcing": 5,
    }
    assert Denoising.of_family(FAMILIES["self-forcing"]).window_blocks == 1
