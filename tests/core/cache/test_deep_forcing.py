"""Deep Forcing against the same memory by brute force."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import DeepForcing
from packforcing_core.cache.policies.deep_forcing import choose_tokens
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block
from tests.exactness import DEEP, steps_off
from tests.reference.memory import DeepForcingOracle
from tests.small import CONFIG, GRID, block_shape, small_cache, small_context, small_model

CASES = [
    (3, DeepForcing()),
    (1, DeepForcing(sink_frames=2, recent_frames=2, budget_frames=5, window_frames=7)),
    (4, DeepForcing(sink_frames=4, recent_frames=5, budget_frames=11, window_frames=11)),
]


@pytest.mark.parametrize("frames_per_block, policy", CASES)
def test_every_pass_equals_attention_over_the_tokens_that_brute_force_keeps(frames_per_block, policy):
    model, blocks = small_model(), 12
    text = model.encode_text(small_context())
    cache = small_cache(policy, frames_per_block)
    oracle = DeepForcingOracle(
        frames_per_block,
        policy.sink_frames,
        policy.recent_frames,
        policy.budget_frames,
        policy.window_frames,
        CONFIG.num_layers,
        GRID,
    )
    worst, drops, attended = 0.0, 0, []
    for block in range(blocks):
        torch.manual_seed(block)
        noisy, latents = torch.randn(2, *block_shape(frames_per_block))
        cache.begin_block()  # A view that is given up leaves no trace.
        view = cache.begin_block()
        oracle.begin()
        oracle.mode = "read"
        for timestep in (900.0, 500.0):
            ours = model.flow(noisy, frame_timesteps(timestep, noisy), text, view)
            oracle.follow(view.selection())
            worst = max(worst, steps_off(ours, model.flow(noisy, frame_timesteps(timestep, noisy), text, oracle)))
        assert oracle.agrees(view.selection())
        drops += oracle.kept[0] is not None
        attended.append(view.window.past_frames + frames_per_block)
        commit_block(model, text, cache, view, latents, 0.0)
        oracle.mode = "commit"
        model.commit(latents, frame_timesteps(0.0, latents), text, oracle)
    print(f"{worst:.1f} rounding steps apart over {blocks} blocks with {drops} drops; frames in view {attended}")
    assert worst < DEEP
    assert drops >= 3
    assert max(attended) <= policy.window_frames
    assert cache.nbytes == cache.shape.buffer_bytes(cache.partitions)


def test_a_view_given_up_after_its_first_step_leaves_no_trace():
    model = small_model()
    text = model.encode_text(small_context())
    flows = []
    for give_up in (False, True):
        cache = small_cache(DeepForcing(2, 3, 6, 9), 3)
        for block in range(6):
            torch.manual_seed(block)
            noisy, latents, other = torch.randn(3, *block_shape(3))
            if give_up:
                model.flow(other, frame_timesteps(900.0, other), text, cache.begin_block())
            view = cache.begin_block()
            flows.append(model.flow(noisy, frame_timesteps(900.0, noisy), text, view))
            commit_block(model, text, cache, view, latents, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(flows[:6], flows[6:], strict=True))


def test_summed_queries_choose_what_all_pairs_choose_and_ties_go_to_the_newer():
    torch.manual_seed(3)
    queries, keys = torch.randn(1, 40, 3, 16), torch.randn(1, 50, 3, 16)
    phi = torch.einsum("bqhd,bkhd->bhqk", queries.double(), keys.double()).sum(dim=(0, 1, 2))
    assert choose_tokens(queries.sum(1), keys, 12).tolist() == sorted(phi.topk(12).indices.tolist())
    assert choose_tokens(queries.sum(1), keys[:, :1].expand(-1, 9, -1, -1), 4).tolist() == [5, 6, 7, 8]
