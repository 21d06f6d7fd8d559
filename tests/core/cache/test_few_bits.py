"""The past in few bits: against rounding in float64 by brute force, against the same past as it is, and to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import (
    POLICIES,
    DeepForcing,
    Full,
    PackForcing,
    Policy,
    SinkWindow,
    Window,
    build_policy,
)
from packforcing_core.cache.few_bits import TokenRows, quantise
from packforcing_core.cache.layer_kv import KVShape
from packforcing_core.cache.policy import int8_parts, packing
from packforcing_core.errors import PackForcingError
from packforcing_core.folder.content import Content
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.recording import wanted_manifest
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import BlockDone, Denoising, frame_timesteps
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, commit_block, commit_due_block, rollout
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.text.script import Script
from tests.exactness import DEEP, SHALLOW, STEP, steps_off
from tests.kept import kept
from tests.reference.memory import DeepForcingOracle, PackForcingOracle, rounded
from tests.small import (
    CONFIG,
    DENOISING,
    GRID,
    SmallCompressor,
    SmallDecoder,
    block_shape,
    small_cache,
    small_context,
    small_model,
    small_shape,
)

FRAMES = 3
ROLLING = Denoising(Schedule.warped((1000.0, 750.0, 500.0), 5.0), rolling=True)
NOTHING = ("nothing",)
"""Names no part, so that all is kept as it is, in the layout of a past in 8 bits."""
CONTENT = Content(Script.of(torch.zeros(1, 2, 3)))
BANK = PackForcing(sink_frames=3, recent_frames=6, top_k_blocks=2, bank_blocks=3)
STILL = PackForcing(sink_frames=3, recent_frames=3, top_k_blocks=2, bank_blocks=4)  # Recent frames never move.
PRUNED = DeepForcing(sink_frames=3, recent_frames=4, budget_frames=8, window_frames=12)


def rendered(
    policy: Policy,
    parts: tuple,
    denoising: Denoising = DENOISING,
    blocks: int = 9,
    choices: Sequence[BlockDone] = (),
    bits: int = 8,
) -> list[BlockDone]:
    """A small render whose plan keeps `parts` in 8 bits; `choices`, of another render, are what it sees of the past."""
    model = small_model()
    plan = replace(
        policy.partitions(FRAMES, denoising.window_blocks).limited_to(blocks * FRAMES), packed=parts, bits=bits
    )
    cache = KVCache(plan, small_shape(FRAMES), GridRope(CONFIG.head_dim, GRID), sdpa)
    if choices:
        begin = cache.begin_block
        cache.begin_block = lambda *_: begin(choices[cache.committed_frames // FRAMES].selection)
    compression = Compression(SmallCompressor(FRAMES), SmallDecoder())
    noise = seeded_noise(7, block_shape(FRAMES))
    events = rollout(model, small_context(), cache, noise, denoising, blocks, compression=compression)
    assert cache.nbytes == cache.shape.buffer_bytes(plan)
    return [event for event in events if isinstance(event, BlockDone)]


def most_steps_off(ours: list[BlockDone], theirs: list[BlockDone]) -> float:
    return max(steps_off(a.latents, b.latents) for a, b in zip(ours, theirs, strict=True))


def selections(done: list[BlockDone]) -> list[list[list[int]]]:
    return [[*map(list, block.selection)] for block in done]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_as_rounding_in_float64_has_them(dtype, bits):
    x = torch.randn(2, 40, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 3] = 0
    x[1, 5, 0, 0] = 100.0
    store, target = TokenRows((2, 50, 3, 64), dtype, bits), torch.empty_like(x)
    store.write(slice(10, 50), x)
    store.read_into(target, slice(10, 50))
    read = store.read(slice(10, 50))
    assert torch.equal(target, read)
    difference = (read.double() - rounded(x.double(), bits)).abs()
    scale = quantise(x, bits)[1].float().repeat_interleave(64 if bits == 8 else 32, dim=-1)
    off = (difference / scale.clamp(min=1e-30)).max().item()
    print(f"max difference to float64 {difference.max():.1e}; {off:.1e} of a step")
    assert off < (SHALLOW * 127 * STEP if dtype is torch.float32 else 1)
    assert ((read.float() - x.float()).abs() <= scale * (0.5 + (0 if dtype is torch.float32 else 0.51))).all()
    assert torch.equal(read[0, 3], torch.zeros_like(read[0, 3]))
    assert store.nbytes == 2 * 50 * 3 * (64 + 4 if bits == 8 else 64 // 2 + 2 * 2)
    store.rearrange(torch.arange(5), torch.arange(20, 25))
    assert torch.equal(store.read(slice(0, 5)), store.read(slice(20, 25)))


@pytest.mark.parametrize("parts", ["sink", "mid", "recent", "all", "all_int4"])
@pytest.mark.parametrize("policy", [BANK, STILL], ids=["recent frames move", "they do not"])
def test_every_pass_equals_attention_over_keys_rounded_in_float64(policy, parts):
    plan = policy.partitions(FRAMES)
    bank = plan.bank
    sizes = FRAMES, plan.sink_frames, plan.recent_frames, bank.top_k_blocks, bank.bank_blocks, bank.mid_span
    bits = packing(parts)["bits"]
    asked = CONFIG.num_layers, GRID
    oracles = [PackForcingOracle(*sizes, *asked, packed, bits=bits) for packed in (int8_parts(parts), ())]
    cache, model = small_cache(replace(policy, kv_int8=parts), FRAMES), small_model()
    text, compressor, waiting = model.encode_text(small_context()), SmallCompressor(FRAMES), {}
    torch.manual_seed(0)
    off, lost = 0.0, 0.0
    for block in range(9):
        latents, noisy = torch.randn(2, *block_shape(FRAMES))
        view = cache.begin_block()
        for oracle in oracles:
            oracle.block, oracle.mode = block, "read"
        flow = model.flow(noisy, frame_timesteps(500.0, noisy), text, view)
        for oracle in oracles:
            oracle.follow(view.selection())
        expected, unrounded = (model.flow(noisy, frame_timesteps(500.0, noisy), text, oracle) for oracle in oracles)
        off, lost = max(off, steps_off(flow, expected)), max(lost, steps_off(flow, unrounded))
        assert oracles[0].agrees(view.selection())
        commit_block(model, text, cache, view, latents, 0.0)
        waiting[block] = compressor.tokens(latents, None, block == 0)
        for oracle in oracles:
            oracle.mode = "commit"
            model.commit(latents, frame_timesteps(0.0, latents), text, oracle)
            if cache.due_block is not None:
                oracle.block, oracle.mode = cache.due_block, "twin"
                tokens = waiting[cache.due_block]
                model.commit_tokens(tokens, torch.zeros(1, 1), text, oracle)
        if cache.due_block is not None:
            commit_due_block(model, text, cache, waiting)
    print(f"{parts}: {off:.1f} rounding steps of float32 from {bits} bits in float64, {lost:.0f} from no rounding")
    # A number between two of the levels may fall to either side; one that does moves little of what is rounded.
    assert off < lost / 4


def test_deep_forcing_chooses_and_drops_tokens_in_eight_bits():
    model = small_model()
    text = model.encode_text(small_context())
    cache = small_cache(replace(PRUNED, kv_int8="all"), FRAMES)
    oracles = [DeepForcingOracle(FRAMES, 3, 4, 8, 12, CONFIG.num_layers, GRID, int8_parts(p)) for p in ("all", "none")]
    off, lost, drops = 0.0, 0.0, 0
    for block in range(9):
        torch.manual_seed(block)
        noisy, latents = torch.randn(2, *block_shape(FRAMES))
        view = cache.begin_block()
        flow = model.flow(noisy, frame_timesteps(500.0, noisy), text, view)
        for oracle in oracles:
            oracle.begin()
            oracle.mode = "read"
            oracle.follow(view.selection())
        expected, unrounded = (model.flow(noisy, frame_timesteps(500.0, noisy), text, oracle) for oracle in oracles)
        off, lost = max(off, steps_off(flow, expected)), max(lost, steps_off(flow, unrounded))
        assert oracles[0].agrees(view.selection())
        drops += oracles[0].own[0] is not None
        commit_block(model, text, cache, view, latents, 0.0)
        for oracle in oracles:
            oracle.mode = "commit"
            model.commit(latents, frame_timesteps(0.0, latents), text, oracle)
    print(f"over {drops} drops {off:.1f} rounding steps of float32 from 8 bits in float64, {lost:.0f} from no 8 bits")
    assert off < lost / 4
    assert drops >= 2


@pytest.mark.parametrize(
    ("policy", "denoising", "limit"),
    [
        (Full(), DENOISING, 0),
        (Window(7), DENOISING, 0),
        (SinkWindow(9, 3), DENOISING, 0),
        (SinkWindow(8, 2, realign=False), DENOISING, 0),
        (PRUNED, DENOISING, 0),
        (BANK, DENOISING, DEEP),  # Mid blocks stand in order of time there, and not where there was room here.
        (SinkWindow(14, 2), ROLLING, 0),
        (SinkWindow(12, 3), ROLLING, 0),
        (Window(13), ROLLING, 0),
        (STILL, ROLLING, DEEP),
    ],
)
def test_the_layout_alone_changes_nothing(policy, denoising, limit):
    ours, plain = rendered(policy, NOTHING, denoising), rendered(policy, (), denoising)
    off = most_steps_off(ours, plain)
    print(f"latents: {off:.1f} rounding steps apart")
    assert selections(ours) == selections(plain)
    assert off <= limit


@pytest.mark.parametrize("policy", [Full(), SinkWindow(12, 3), BANK, PRUNED, SinkWindow(14, 2)], ids=repr)
def test_a_film_in_eight_bits_is_near_the_plain_one(policy):
    denoising = ROLLING if policy == SinkWindow(14, 2) else DENOISING
    plain = rendered(policy, (), denoising)
    choices = plain if policy in (BANK, PRUNED) else ()
    ours = rendered(policy, int8_parts("all"), denoising, choices=choices)
    off = most_steps_off(ours, plain)
    print(f"latents: {off:.0f} rounding steps of float32 apart, which are {off * STEP:.1e} of the largest")
    assert 0 < off * STEP < 1 / 127


def test_the_error_does_not_grow_over_100_blocks():
    policy = PackForcing(3, 3, 2, 8)
    plain = rendered(policy, (), blocks=100)
    alone = rendered(policy, int8_parts("all"), blocks=100)
    compared(plain, rendered(policy, int8_parts("all"), blocks=100, choices=plain), alone)
    compared(plain, rendered(policy, int8_parts("all"), blocks=100, choices=plain, bits=4))


def compared(plain: list[BlockDone], ours: list[BlockDone], alone: list[BlockDone] | None = None) -> None:
    """Fails where the distance of `ours` from `plain` grows; what `alone` selects by itself is told."""
    off = [((a.latents - b.latents).std() / b.latents.std()).item() for a, b in zip(ours, plain, strict=True)]
    told = ", ".join(f"block {block}: {off[block - 1]:.1e}" for block in (2, 10, 20, 50, 100))
    print(f"of the deviation, {told}; the worst {max(off):.1e}")
    if alone:
        same = sum(a == b for a, b in zip(selections(alone), selections(plain), strict=True))
        print(f"alone it selects the same in {same} blocks of 100")
    assert off[0] == 0
    assert max(off) < 4 * off[1]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_twin_that_is_in_few_bits_in_the_bank_is_not_rounded_again(bits):
    banked = replace(BANK, bank_storage=f"ram_int{bits}")
    plain = rendered(banked, ())
    off = most_steps_off(rendered(banked, ("mid",), choices=plain, bits=bits), plain)
    print(f"mid in {bits} bits, out of a bank in as many or not: latents {off:.1f} rounding steps apart")
    assert off < DEEP


def test_the_codes_of_the_sink_stay_as_they_are_for_200_blocks():
    cache = small_cache(SinkWindow(12, 3, kv_int8="all"), FRAMES)
    rows = FRAMES * GRID[0] * GRID[1], CONFIG.num_heads, CONFIG.head_dim
    first = None
    for _ in range(200):
        with cache.commit(cache.begin_block()) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *torch.randn(3, 1, *rows))
        tensors = {name: t.clone() for name, t in kept(cache).items() if ".sink." in name}
        first = first or tensors
    assert len(first) == 4 * CONFIG.num_layers
    assert all(torch.equal(tensors[name], first[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "own"),
    [(name, {}) for name in POLICIES]
    + [("packforcing", {"bank_storage": s}) for s in ("vram", "ram_int8", "ram_int4", "vram_int4")],
)
def test_planned_bytes_are_the_allocated_ones_for_every_choice(name, own):
    choices = next(knob for knob in POLICIES[name].knobs() if knob.name == "kv_int8").choices
    for dtype in (torch.float32, torch.bfloat16):
        shape = replace(small_shape(FRAMES), dtype=dtype, batch=2)
        for choice in choices:
            plan = build_policy(name, kv_int8=choice, **own).partitions(FRAMES).limited_to(90)
            cache = KVCache(plan, shape, GridRope(CONFIG.head_dim, GRID), sdpa)
            assert cache.nbytes == shape.buffer_bytes(plan)
            assert cache.host_nbytes == shape.host_bytes(plan)
            kept = sum(sum(pair.nbytes for pair in layer._parts.values()) for layer in cache.layers if plan.packed)
            assert not plan.packed or kept == shape.cache_bytes(plan)


def test_at_the_papers_sizes_half_the_past_and_no_current_block_in_each_layer():
    shape = KVShape(30, 12, 128, 1560, compressed_tokens=182)
    told = partial("{:.2f}".format)
    plain, packed = (PackForcing(kv_int8=choice).partitions(4) for choice in ("none", "all"))
    got = [told(f(plan) / 1e9) for f in (shape.cache_bytes, shape.buffer_bytes) for plan in (plain, packed)]
    print(f"past {got[0]} -> {got[1]} GB, all on the device {got[2]} -> {got[3]} GB")
    assert got == ["3.99", "2.06", "5.44", "2.26"]
    packed = PackForcing(kv_int8="all_int4", bank_storage="ram_int4").partitions(4)
    got = [told(f(packed) / 1e9) for f in (shape.cache_bytes, shape.buffer_bytes, shape.host_bytes)]
    print(f"in 4 bits: past {got[0]} GB, all on the device {got[1]}, bank in system RAM {got[2]}")
    assert got == ["1.12", "1.32", "1.51"]


def test_parts_that_a_policy_does_not_have_are_refused():
    with pytest.raises(PackForcingError, match="kv_int8 of policy 'window' is 'sink'; expected one of none, all"):
        build_policy("window", kv_int8="sink")
    with pytest.raises(PackForcingError, match="'half'; expected one of none, sink, mid"):
        build_policy("packforcing", kv_int8="half")
    assert int8_parts("sink+recent") == ("sink", "recent")
    assert (int8_parts("none"), int8_parts("all")) == ((), ("sink", "mid", "recent"))
    assert packing("all_int4") == {"packed": int8_parts("all"), "bits": 4}
    assert packing("sink") == {"packed": ("sink",), "bits": 8}


def test_a_render_goes_on_only_with_the_precision_that_it_began_with():
    def settings(kv_int8: str) -> dict:
        recipe = Recipe(VideoGeometry(64, 32, 16.0, FRAMES, 10), replace(BANK, kv_int8=kv_int8), DENOISING, 0)
        return wanted_manifest(recipe, {}, CONTENT, torch.device("cpu")).settings

    plain, packed = settings("none"), settings("all")
    assert packed == {**plain, "policy kv_int8": "all"} != plain


def test_a_render_goes_on_only_with_the_gap_that_it_began_with():
    def settings(gap: int) -> dict:
        recipe = Recipe(VideoGeometry(64, 32, 16.0, FRAMES, 10), replace(BANK, sink_gap=gap), DENOISING, 0)
        return wanted_manifest(recipe, {}, CONTENT, torch.device("cpu")).settings

    closed, left_open = settings(0), settings(12)
    assert left_open == {**closed, "policy sink_gap": 12} != closed
