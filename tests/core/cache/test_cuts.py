"""Hard cuts, where time jumps, and flushes, which forget all but the sink and the newest block."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from packforcing_core.cache.config import DeepForcing, Full, MemRoPE, PackForcing, SinkWindow, TetherCache, Window
from packforcing_core.cache.partitions import CUT_FRAMES
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block, recache
from tests.exactness import DEEP, steps_off
from tests.reference.frontier import Oracle
from tests.small import CONFIG, GRID, block_shape, small_cache, small_context, small_model


class CutOracle(Oracle):
    """A sink and a window, at the frames' own times or (`realigned`) counted from the first frame in view."""

    def __init__(self, sink, recent, realigned, cut, *sizes):
        super().__init__(*sizes)
        self.sink, self.recent, self.realigned, self.cut = sink, recent, realigned, cut

    def past(self, layer, q):
        made = self.made[layer]
        now = len(made)
        oldest = max(self.sink, now - self.recent)

        def time(frame):
            jumped = CUT_FRAMES if frame >= self.cut and (not self.realigned or oldest < self.cut) else 0
            return frame + jumped - (oldest - self.sink if self.realigned else 0)

        sink = [(*made[f], float(f)) for f in range(min(now, self.sink))]
        return [*sink, *((*made[f], float(time(f))) for f in range(oldest, now))], float(time(now))


@pytest.mark.parametrize(
    ("frames_per_block", "policy", "sink", "recent", "realigned"),
    [
        (3, Full(), 0, 1000, False),
        (3, Window(9), 0, 6, False),
        (1, SinkWindow(6, 2), 2, 3, True),
        (3, SinkWindow(12, 3), 3, 6, True),
        (4, SinkWindow(16, 4, realign=False), 4, 8, False),
    ],
)
def test_every_pass_around_a_cut_equals_attention_with_time_that_jumped(
    frames_per_block, policy, sink, recent, realigned
):
    model, cut, worst = small_model(), 4, 0.0
    text = model.encode_text(small_context())
    cache = small_cache(policy, frames_per_block, 60)
    sizes = frames_per_block, CONFIG.num_layers, GRID
    oracle = CutOracle(sink, recent, realigned, cut * frames_per_block, *sizes)
    uncut = CutOracle(sink, recent, realigned, 1 << 30, *sizes)
    apart = []
    for block in range(10):
        torch.manual_seed(block)
        noisy, latents = torch.randn(2, *block_shape(frames_per_block))
        if block == cut:
            cache.cut()
        view = cache.begin_block()
        for one in (oracle, uncut):
            one.begin()
        flows = [model.flow(noisy, frame_timesteps(900.0, noisy), text, one) for one in (view, oracle, uncut)]
        worst = max(worst, steps_off(*flows[:2]))
        apart.append((flows[0] - flows[2]).abs().max().item())
        commit_block(model, text, cache, view, latents, 0.0)
        for one in (oracle, uncut):
            one.mode = "commit"
            model.commit(latents, frame_timesteps(0.0, latents), text, one)
    print(f"{worst:.1f} rounding steps off; from a past without the cut:", " ".join(f"{x:.0e}" for x in apart))
    assert worst < DEEP
    assert max(apart[:cut]) < 1e-5
    assert apart[cut] > 1e-3


def committed(policy, blocks: int):
    """A cache with `blocks` random clean blocks and its latents, the bank's compressed by chance."""
    model = small_model()
    text = model.encode_text(small_context())
    cache = small_cache(policy, 3, 60)
    torch.manual_seed(5)
    clean = {block: torch.randn(block_shape(3)) for block in range(blocks)}
    for latents in clean.values():
        commit_block(model, text, cache, cache.begin_block(), latents, 0.0)
        if cache.due_block is not None:
            tokens = torch.randn(1, cache.shape.compressed_tokens, CONFIG.dim)
            with cache.commit_compressed() as writer:
                model.commit_tokens(tokens, torch.zeros(1, 1), text, writer)
    return model, cache, clean


@pytest.mark.parametrize(
    "policy",
    [Full(), Window(9), SinkWindow(9, 3), DeepForcing(2, 3, 6, 9), PackForcing(3, 6, 2, 4), TetherCache(2, 3, 4)],
    ids=repr,
)
def test_after_a_flush_the_past_is_the_sink_and_the_newest_block_alone(policy):
    model, cache, clean = committed(policy, 9)
    text = model.encode_text(small_context(seed=2))
    sink = -(-cache.partitions.sink_frames // 3)
    recache(model, text, cache, clean, flush=True)
    fresh = small_cache(policy, 3, 60)
    for block in (*range(sink), 8):
        commit_block(model, text, fresh, fresh.begin_block(), clean[block], 0.0)
    noisy = torch.randn(block_shape(3))
    flows = [model.flow(noisy, frame_timesteps(900.0, noisy), text, one.begin_block()) for one in (cache, fresh)]
    assert torch.equal(*flows)
    assert cache.next_block == 9
    assert cache.mid is None or cache.mid.blocks == []


@pytest.mark.parametrize("policy", [DeepForcing(2, 3, 6, 9), TetherCache(2, 3, 4)])
def test_a_cut_is_refused_where_positions_are_places(policy):
    with pytest.raises(PackForcingError, match="another policy"):
        small_cache(policy, 3).cut()


@pytest.mark.parametrize("policy", [PackForcing(3, 6, 2, 4), MemRoPE(3, 6)])
def test_the_jump_is_closed_when_all_recent_frames_come_after_it(policy):
    plan = policy.partitions(3)
    before, after = (plan.window(60, banked=4, cuts=(57,)), plan.window(63, banked=4, cuts=(57,)))
    recent = [p.position for p in before.past if p.frame >= 3]
    assert [b - a for a, b in pairwise(recent)] == [1, 1, CUT_FRAMES + 1, 1, 1]
    assert after == plan.window(63, banked=4)
