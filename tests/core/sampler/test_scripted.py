"""Prompts that change, against the rollout's own parts put together by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from packforcing_core.cache.config import (
    DeepForcing,
    Full,
    MemRoPE,
    PackForcing,
    RollingSink,
    SinkWindow,
    TetherCache,
    Window,
)
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.denoising import BlockDone, denoise_block
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, commit_block, recache, require_followable, rollout
from packforcing_core.text.script import Cue, Script
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

ONE, TWO = (small_context(seed=seed) for seed in (1, 2))
POLICIES = [Full(), Window(6), SinkWindow(9, 3), DeepForcing(2, 3, 6, 9), PackForcing(3, 3, 2, 4)]


def scripted(script: Script, blocks: int, policy=None, known=(), model=None) -> list[BlockDone]:
    policy = policy or SinkWindow(9, 3)
    found = {done.block: done for done in known}
    cache = small_cache(policy, 3, blocks * 3)
    noise = seeded_noise(7, block_shape(3))
    compression = Compression(SmallCompressor(3), SmallDecoder())
    model = model or small_model()
    events = rollout(model, script, cache, noise, DENOISING, blocks, found.get, compression)
    return [event for event in events if isinstance(event, BlockDone)]


def difference(a: list[BlockDone], b: list[BlockDone]) -> list[float]:
    return [(x.latents - y.latents).abs().max().item() for x, y in zip(a, b, strict=False)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_plain_prompt_is_the_rollout(policy):
    assert difference(scripted(Script.of(ONE), 7, policy), render_blocks(policy, 7)) == [0] * 7


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_change_is_seen_from_its_block_on_and_the_beginning_does_not_know_of_the_end(policy, again):
    script = Script((Cue(0, ONE), Cue(4, TWO, recache=again), Cue(7, ONE, blend_blocks=1, recache=again)))
    whole, plain = scripted(script, 9, policy), render_blocks(policy, 9)
    apart = difference(whole, plain)
    print("apart from one prompt:", " ".join(f"{value:.2f}" for value in apart))
    assert apart[:4] == [0] * 4
    assert min(apart[4:8]) > 1e-3  # Later a window has forgotten that there was another prompt.
    for blocks in (5, 8):
        assert difference(scripted(script, blocks, policy), whole) == [0] * blocks


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_render_that_is_resumed_around_a_change_is_the_same(policy, again):
    script = Script((Cue(0, ONE), Cue(4, TWO, blend_blocks=1, recache=again)))
    whole = scripted(script, 7, policy)
    for known in (3, 4, 5, 6):
        assert difference(scripted(script, 7, policy, known=whole[:known]), whole) == [0] * 7


@pytest.mark.parametrize("change", ["cut", "flush"])
@pytest.mark.parametrize("policy", [*POLICIES, MemRoPE(3, 3), RollingSink(9), TetherCache(2, 3, 4)], ids=repr)
def test_cuts_and_flushes_change_their_block_leave_what_comes_before_and_resume(policy, change):
    script = Script((Cue(0, ONE), Cue(4, TWO, change=change)))
    whole, soft = scripted(script, 7, policy), scripted(Script((Cue(0, ONE), Cue(4, TWO))), 7, policy)
    apart = difference(whole, soft)
    print("apart from a soft change:", " ".join(f"{value:.2f}" for value in apart))
    assert apart[:4] == [0] * 4
    assert apart[4] > 1e-3
    for known in (3, 4, 5, 6):
        assert difference(scripted(script, 7, policy, known=whole[:known]), whole) == [0] * 7


@pytest.mark.parametrize("again", [False, True])
def test_it_is_denoising_committing_and_recaching_by_hand(again):
    model, cache, noise = small_model(), small_cache(SinkWindow(9, 3), 3, 21), seeded_noise(7, block_shape(3))
    latents = {}
    for block in range(7):
        text = model.encode_text(TWO if block >= 4 else ONE)
        if block == 4 and again:
            recache(model, text, cache, latents)
        view = cache.begin_block()
        steps = denoise_block(model, text, view, noise, DENOISING.of_block(block), block)
        try:
            while True:
                next(steps)
        except StopIteration as ended:
            latents[block] = ended.value
        commit_block(model, text, cache, view, latents[block], 0.0)
    made = scripted(Script((Cue(0, ONE), Cue(4, TWO, recache=again))), 7)
    assert all(torch.equal(done.latents, latents[done.block]) for done in made)


def test_a_text_is_encoded_once_for_all_its_blocks():
    model, encoded = small_model(), Counter()
    plain = model.encode_text

    def counted(context):
        encoded[round(context.sum().item(), 3)] += 1
        return plain(context)

    model.encode_text = counted
    scripted(Script((Cue(0, ONE), Cue(3, TWO, blend_blocks=2))), 9, model=model)
    print(dict(encoded))
    assert sorted(encoded.values()) == [1, 1, 1, 1]


def test_a_rolling_rollout_takes_one_prompt():
    rolling = replace(DENOISING, rolling=True)
    require_followable(Script.of(ONE), rolling)
    with pytest.raises(PackForcingError, match="2 prompts over time for a rolling rollout"):
        require_followable(Script((Cue(0, ONE), Cue(3, TWO))), rolling)
