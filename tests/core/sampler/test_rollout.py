"""The rollout against METHOD 3 written out on a pass that has no cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from packforcing_core.cache.config import Full, SinkWindow, Window
from packforcing_core.errors import PackForcingError
from packforcing_core.model.causal import CausalWan
from packforcing_core.sampler.denoising import BlockDone, Denoising, StepDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import rollout
from packforcing_core.sampler.schedule import Schedule
from tests.exactness import DEEP, steps_off
from tests.reference.wan import block_causal_mask, forward, grid_positions
from tests.small import CONFIG, DENOISING, GRID, block_shape, render_latents, small_cache, small_context, small_model

POLICIES = [
    Full(),
    Window(6),
    Window(7),
    SinkWindow(8, 2),
    SinkWindow(8, 2, realign=False),
    SinkWindow(12, 3),
]
TWO, FOUR = (Schedule.warped(steps, 5.0) for steps in ((1000.0, 500.0), (1000.0, 750.0, 500.0, 250.0)))


def plain_rollout(model: CausalWan, context: Tensor, seed: int, denoising: Denoising, blocks: int, size: int) -> Tensor:
    """Every model call is one masked pass over all clean frames so far and the block."""
    noise, clean = seeded_noise(seed, block_shape(size)), []
    for block in range(blocks):
        schedule = denoising.first_block if block == 0 and denoising.first_block else denoising.schedule
        x = noise(block, 0)
        for step, sigma in enumerate(schedule.sigmas):
            frames = torch.cat((*clean, x), dim=2)
            timesteps = torch.full((1, frames.shape[2]), denoising.context_noise)
            timesteps[:, -size:] = schedule.timesteps[step]
            positions = grid_positions(list(range(frames.shape[2])), GRID)
            mask = block_causal_mask(block + 1, size * GRID[0] * GRID[1])
            flow = forward(model.net, CONFIG, frames, timesteps, context, positions, mask)[:, :, -size:]
            x0 = x - sigma * flow
            if step + 1 < len(schedule):
                following = schedule.sigmas[step + 1]
                x = (1 - following) * x0 + following * noise(block, step + 1)
        clean.append(x0)
    return torch.cat(clean, dim=2)


def run(model: CausalWan, denoising: Denoising, blocks: int, size: int = 3, policy=None, seed: int = 7, known=()):
    cache = small_cache(policy or Full(), size, blocks * size)
    found = {block: BlockDone(block, latents) for block, latents in enumerate(known)}
    noise = seeded_noise(seed, block_shape(size))
    return rollout(model, small_context(), cache, noise, denoising, blocks, found.get)


def latents(events) -> list[Tensor]:
    return [event.latents for event in events if isinstance(event, BlockDone)]


@pytest.mark.parametrize(
    "denoising",
    [Denoising(TWO), Denoising(TWO, first_block=FOUR), Denoising(FOUR, context_noise=100.0)],
    ids=["two steps", "block 0 has four", "context noise"],
)
@pytest.mark.parametrize("size", [1, 3])
def test_with_full_history_it_is_the_method_written_out(denoising, size):
    model, blocks = small_model(), 4
    ours = torch.cat(latents(run(model, denoising, blocks, size)), dim=2)
    expected = plain_rollout(model, small_context(), 7, denoising, blocks, size)
    off = steps_off(ours, expected)
    print(f"{off:.1f} rounding steps from float64, of latents with deviation {expected.std():.2f}")
    assert off < DEEP


def test_context_noise_and_the_first_blocks_schedule_are_heard():
    model = small_model()
    plain = latents(run(model, Denoising(TWO), 3))
    noisy_context = latents(run(model, Denoising(TWO, context_noise=100.0), 3))
    first = latents(run(model, Denoising(TWO, first_block=FOUR), 3))
    assert torch.equal(plain[0], noisy_context[0])  # No history yet.
    assert not torch.equal(plain[1], noisy_context[1])
    assert not torch.equal(plain[0], first[0])


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_beginning_of_a_long_render_is_the_short_render(policy):
    long = render_latents(policy, blocks=9)
    for blocks in (1, 2, 4, 6):
        short = render_latents(policy, blocks)
        difference = max((a - b).abs().max().item() for a, b in zip(short, long, strict=False))
        print(f"max difference of {blocks} blocks of 9: {difference:.1e}")
        assert difference == 0
    assert min(block.std().item() for block in long) > 0.1


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_continuing_from_known_blocks_gives_exactly_the_same_rest(policy):
    whole = render_latents(policy, blocks=7)
    for known in (1, 3, 6):
        continued = render_latents(policy, blocks=7, known=whole[:known])
        assert all(torch.equal(a, b) for a, b in zip(whole, continued, strict=True))


def test_another_known_block_changes_what_follows():
    whole = render_latents(Window(6), blocks=3)
    other = render_latents(Window(6), blocks=3, known=[whole[0] + 1])
    assert torch.equal(other[0], whole[0] + 1)
    assert not torch.allclose(other[1], whole[1], atol=1e-3)


def test_events_come_in_order_and_name_their_step():
    events = list(run(small_model(), Denoising(TWO, first_block=FOUR), 3))
    told = [
        (event.block, event.step, event.steps) if isinstance(event, StepDone) else (event.block, event.reused)
        for event in events
    ]
    assert told == [
        *((0, step, 4) for step in range(4)),
        (0, False),
        *((1, step, 2) for step in range(2)),
        (1, False),
        *((2, step, 2) for step in range(2)),
        (2, False),
    ]
    assert {tuple(event.latents.shape) for event in events if isinstance(event, BlockDone)} == {block_shape(3)}


def test_known_blocks_are_not_denoised_again():
    known = render_latents(Full(), blocks=2)
    events = list(run(small_model(), DENOISING, 3, known=known))
    assert [event.block for event in events if isinstance(event, StepDone)] == [2, 2]
    assert [event.reused for event in events if isinstance(event, BlockDone)] == [True, True, False]


def test_between_two_events_nothing_runs():
    drawn = []
    noise = seeded_noise(1, block_shape(3))

    def watched(block: int, step: int) -> Tensor:
        drawn.append((block, step))
        return noise(block, step)

    model = small_model()
    events = rollout(model, small_context(), small_cache(Full(), 3, 9), watched, DENOISING, 3)
    assert drawn == []
    next(events)
    assert drawn == [(0, 0)]
    next(events)
    assert drawn == [(0, 0), (0, 1)]


def test_the_last_block_is_not_committed():
    """Nothing reads it: a pass less, and a cache that ends where the clip does."""
    model, cache = small_model(), small_cache(Full(), 3, 9)
    list(rollout(model, small_context(), cache, seeded_noise(1, block_shape(3)), DENOISING, 3))
    assert cache.committed_frames == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_block_and_keep_those_before(bad):
    model = small_model()
    noise = seeded_noise(1, block_shape(3))

    def spoilt(block: int, step: int) -> Tensor:
        return noise(block, step).masked_fill_(torch.tensor(block == 2), bad)

    events = rollout(model, small_context(), small_cache(Full(), 3, 12), spoilt, DENOISING, 4)
    done = []
    with pytest.raises(PackForcingError, match=r"Block 2 .*not finite.*blocks before it are kept.*bf16"):
        done.extend(event for event in events if isinstance(event, BlockDone))
    assert [event.block for event in done] == [0, 1]


def test_events_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StepDone(0, 0, 4).step = 1
