"""One pass of teacher forcing against the real cache, driven block by block as a rollout drives it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from packforcing_core.cache.config import DeepForcing, Full, PackForcing, Policy, SinkWindow, Window
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.compressor import padded
from packforcing_core.laboratory.training.flow import teacher_forced_flow
from packforcing_core.laboratory.training.parts import PartsHistory, PartsPlan
from packforcing_core.laboratory.training.wan import TrainedWan
from packforcing_core.model.causal import CausalWan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.rollout import commit_block, commit_due_block
from tests.exactness import DEEP, steps_off
from tests.small import CONFIG, GRID, SmallCompressor, small_cache, small_context, small_net

BLOCKS = 6
CASES = [
    (3, Full()),
    (1, Full()),
    (3, Window(window_frames=8)),
    (2, Window(window_frames=5)),
    (3, SinkWindow(window_frames=8, sink_frames=2)),
    (2, SinkWindow(window_frames=6, sink_frames=3)),
    (3, SinkWindow(window_frames=8, sink_frames=2, realign=False)),
    (2, PackForcing(sink_frames=4, recent_frames=2, top_k_blocks=4, bank_blocks=4)),
    (2, PackForcing(sink_frames=2, recent_frames=4, top_k_blocks=3, bank_blocks=4, mid_span=0)),
    (1, PackForcing(sink_frames=0, recent_frames=2, top_k_blocks=4, bank_blocks=8, mid_span=0.5)),
]


def clips(frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and noisy latents, and noise levels by the block."""
    generator = torch.Generator().manual_seed(0)
    clean, noisy = torch.randn(2, 1, 16, frames * BLOCKS, 2 * GRID[0], 2 * GRID[1], generator=generator)
    return clean, noisy, torch.rand(1, BLOCKS, generator=generator).repeat_interleave(frames, dim=1)


@torch.no_grad()
def by_cache(model: CausalWan, policy: Policy, frames: int) -> tuple[Tensor, dict[int, Tensor]]:
    """The flow of every block, each read through the cache that the commits before it filled; and the twins' tokens."""
    clean, noisy, sigma = (x.split(frames, dim=2 if x.ndim == 5 else 1) for x in clips(frames))
    text, compressor = model.encode_text(small_context()), SmallCompressor(frames)
    cache = small_cache(policy, frames, BLOCKS * frames)
    flows, waiting, twins = [], {}, {}
    for block in range(BLOCKS):
        view = cache.begin_block()
        flows.append(model.flow(noisy[block], 1000 * sigma[block], text, view))
        commit_block(model, text, cache, view, clean[block], 0.0)
        if cache.due_block is not None:
            twins[cache.due_block] = compressor.tokens(clean[cache.due_block], None, False)
        waiting[block] = compressor.tokens(clean[block], None, block == 0)
        commit_due_block(model, text, cache, waiting)
    return torch.cat(flows, dim=2), twins


@pytest.mark.parametrize("frames, policy", CASES, ids=lambda value: str(value))
def test_one_pass_equals_the_cache_block_by_block(frames, policy):
    model = TrainedWan(small_net(), CONFIG)
    expected, twins = by_cache(model, policy, frames)
    plan = PartsPlan(policy.partitions(frames), BLOCKS, GridRope(CONFIG.head_dim, GRID))
    seen = PartsHistory(plan.parts())
    clean, noisy, sigma = clips(frames)
    with torch.no_grad():
        if plan.twins:
            before = padded(model.embed(clean), [twins[block] for block in plan.twins], plan.padding_tokens)
            zeros = sigma.new_zeros(1, clean.shape[2] + plan.twin_frames)
            timesteps = torch.cat((zeros, 1000 * sigma), dim=1)
            found = model.flow_behind(before, noisy, timesteps, model.encode_text(small_context()), seen)
        else:
            found = teacher_forced_flow(model, clean, noisy, sigma, small_context(), seen)
    off = steps_off(found, expected)
    print(f"{policy}, blocks of {frames}, twins {plan.twins}: {off:.1f} rounding steps apart")
    assert bool(plan.twins) == isinstance(policy, PackForcing)
    assert off < DEEP


def test_what_a_policy_hides_does_not_matter_and_what_it_shows_does():
    model, frames = TrainedWan(small_net(), CONFIG), 2
    plan = PartsPlan(Window(window_frames=4).partitions(frames), BLOCKS, GridRope(CONFIG.head_dim, GRID))
    seen = PartsHistory(plan.parts())
    clean, noisy, sigma = clips(frames)
    clean.requires_grad_()
    flow = teacher_forced_flow(model, clean, noisy, sigma, small_context(), seen)
    flow[:, :, 4:6].sum().backward()  # block 2
    reached = clean.grad.abs().amax((0, 1, 3, 4))
    print(f"gradient of block 2 by clean frame: {[f'{value:.1e}' for value in reached.tolist()]}")
    assert (reached[:4] > 0).all()  # block 1 is in view, and its keys have seen block 0
    assert (reached[4:] == 0).all()  # not its own answer, nor the future


def test_a_policy_that_drops_tokens_is_refused():
    with pytest.raises(PackForcingError, match="teacher forcing plans ahead"):
        PartsPlan(DeepForcing().partitions(2), BLOCKS, GridRope(CONFIG.head_dim, GRID))


@torch.no_grad()
def test_noisy_copies_do_not_see_each_other():
    clean, noisy, sigma = clips(3)
    model = TrainedWan(small_net(), CONFIG)
    plan = PartsPlan(Window(window_frames=8).partitions(3), BLOCKS, GridRope(CONFIG.head_dim, GRID))
    alone, together = PartsHistory(plan.parts()), PartsHistory(plan.parts(noisy_copies=2))
    other = noisy.flip(2)
    both = torch.cat((noisy, other), dim=2), torch.cat((sigma, sigma), dim=1)
    expected = [teacher_forced_flow(model, clean, x, sigma, small_context(), alone) for x in (noisy, other)]
    given = teacher_forced_flow(model, clean, *both, small_context(), together)
    off = steps_off(given, torch.cat(expected, dim=2))
    print(f"two copies in one pass and each alone: {off:.1f} rounding steps apart")
    assert off < DEEP
