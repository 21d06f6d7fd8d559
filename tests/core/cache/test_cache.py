"""The cache against passes that have none."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import Full, SinkWindow, Window
from packforcing_core.errors import PackForcingError
from packforcing_core.rope import GridRope, rotate
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.reference.wan import block_causal_mask, forward, grid_positions
from tests.small import CONFIG, GRID, block_shape, small_cache, small_context, small_model

POLICIES = [Full(), Window(6), Window(7), SinkWindow(8, 2), SinkWindow(8, 2, realign=False), SinkWindow(9, 3)]


def in_view(policy, block: int, frames_per_block: int) -> tuple[list[int], list[int]]:
    """The frames that block may see, itself included, and their positions: the definition, without any plan."""
    current = list(range(block * frames_per_block, (block + 1) * frames_per_block))
    if isinstance(policy, Full):
        frames = list(range(current[-1] + 1))
        return frames, frames
    sink_frames = policy.sink_frames if isinstance(policy, SinkWindow) else 0
    newest = policy.window_frames - sink_frames
    frames = [f for f in range(current[-1] + 1) if f < sink_frames or f > current[-1] - newest]
    realign = isinstance(policy, SinkWindow) and policy.realign
    return frames, list(range(len(frames))) if realign else frames


def commit_all(cache, model, text, blocks: list[torch.Tensor]) -> None:
    for latents in blocks:
        commit_block(model, text, cache, cache.begin_block(), latents, 0.0)


@pytest.mark.parametrize("frames_per_block", [1, 3])
def test_full_history_equals_one_pass_with_a_block_causal_mask(frames_per_block):
    model, context, blocks = small_model(), small_context(), 5
    text = model.encode_text(context)
    cache = small_cache(Full(), frames_per_block, blocks * frames_per_block)
    clean = [torch.randn(block_shape(frames_per_block)) for _ in range(blocks)]
    timesteps = torch.zeros(1, blocks * frames_per_block)
    flows = []
    for latents in clean:
        view = cache.begin_block()
        flows.append(model.flow(latents, frame_timesteps(0.0, latents), text, view))
        commit_block(model, text, cache, view, latents, 0.0)

    positions = grid_positions(list(range(blocks * frames_per_block)), GRID)
    mask = block_causal_mask(blocks, frames_per_block * GRID[0] * GRID[1])
    expected = forward(model.net, CONFIG, torch.cat(clean, 2), timesteps, context, positions, mask)
    off = steps_off(torch.cat(flows, 2), expected)
    print(f"{off:.1f} rounding steps from the masked pass in float64")
    assert off < DEEP
    assert expected.std() > 0.1


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("frames_per_block", [1, 3])
def test_first_layer_attends_to_just_the_planned_frames_at_their_positions(policy, frames_per_block):
    """With one layer a frame's keys depend on nothing but the frame, so a view equals attention over chosen frames."""
    tokens = GRID[0] * GRID[1]
    blocks = 8
    cache = small_cache(policy, frames_per_block, blocks * frames_per_block)
    made = torch.randn(3, 1, blocks * frames_per_block * tokens, CONFIG.num_heads, CONFIG.head_dim)
    rope = GridRope(CONFIG.head_dim, GRID)
    worst = 0.0
    for block in range(blocks):
        rows = slice(block * frames_per_block * tokens, (block + 1) * frames_per_block * tokens)
        q, k, v = (x[:, rows] for x in made)
        view = cache.begin_block()
        out = [view.attend(layer, q, k, v) for layer in range(CONFIG.num_layers)]
        with cache.commit(view) as writer:
            committed = [writer.attend(layer, q, k, v) for layer in range(CONFIG.num_layers)]

        frames, positions = in_view(policy, block, frames_per_block)
        chosen = torch.cat([torch.arange(f * tokens, (f + 1) * tokens) for f in frames])
        keys = rotate(made[1][:, chosen], rope.frames(positions))
        queries = rotate(q, rope.frames(positions[-frames_per_block:]))
        expected = cache.attention(queries.double(), keys.double(), made[2][:, chosen].double())
        worst = max(worst, *(steps_off(o, expected) for o in (*out, *committed)))
    print(f"{worst:.1f} rounding steps from float64 over {blocks} blocks")
    assert worst < SHALLOW


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_bytes_are_the_planned_ones_and_never_grow(policy):
    frames_per_block, blocks = 3, 200
    cache = small_cache(policy, frames_per_block, 60)
    planned = cache.shape.buffer_bytes(cache.partitions)
    made = torch.randn(3, 1, *block_rows(frames_per_block))
    if isinstance(policy, Full):
        blocks = 19
    attended = []
    for _ in range(blocks):
        view = cache.begin_block()
        attended.append(len(view.window.past) + frames_per_block)
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *made)
        assert cache.nbytes == planned
    if not isinstance(policy, Full):
        assert set(attended[20:]) == {policy.window_frames}


def block_rows(frames_per_block: int) -> tuple[int, int, int]:
    return frames_per_block * GRID[0] * GRID[1], CONFIG.num_heads, CONFIG.head_dim


def test_sink_keys_stay_bit_equal_over_a_thousand_blocks():
    cache = small_cache(SinkWindow(12, 3), 3)
    first_read = None
    for _ in range(1000):
        view = cache.begin_block()
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *torch.randn(3, 1, *block_rows(3)))
        kv, first = cache.layers[0], cache.partitions.slot(2)
        sink = kv.k[:, kv.tokens(first, 3)]
        first_read = sink.clone() if first_read is None else first_read
    assert torch.equal(sink, first_read)


def test_reading_at_a_moved_position_equals_rotating_there():
    """The recent frames of a realigned window move every block; each read is one fresh rotation."""
    cache = small_cache(SinkWindow(12, 3), 3)
    rope = GridRope(CONFIG.head_dim, GRID)
    made = {}
    for block in range(9):
        q, k, v = torch.randn(3, 1, *block_rows(3))
        for i, rows in enumerate(k.split(GRID[0] * GRID[1], dim=1)):
            made[3 * block + i] = rows
        view = cache.begin_block()
        for frame, slot, position in view.window.past:
            kv = cache.layers[1]
            assert torch.equal(kv.k[:, kv.tokens(slot)], rotate(made[frame], rope.frames([position])))
        with cache.commit(view) as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, q, k, v)


def test_denoising_through_a_view_leaves_the_past_untouched():
    cache, model = small_cache(SinkWindow(9, 3), 3), small_model()
    text = model.encode_text(small_context())
    commit_all(cache, model, text, [torch.randn(block_shape(3)) for _ in range(4)])
    view = cache.begin_block()
    past = [layer.k[:, : layer.current(view.window).start].clone() for layer in cache.layers]
    model.flow(torch.randn(block_shape(3)), torch.full((1, 3), 900.0), text, view)
    for layer, before in zip(cache.layers, past, strict=True):
        assert torch.equal(layer.k[:, : layer.current(view.window).start], before)
    assert cache.committed_frames == 12


def test_an_interrupted_commit_is_not_read_again():
    cache = small_cache(Window(9), 3)
    view = cache.begin_block()
    with pytest.raises(KeyboardInterrupt), cache.commit(view):
        raise KeyboardInterrupt
    with pytest.raises(PackForcingError, match="cache write was interrupted"):
        cache.begin_block()
