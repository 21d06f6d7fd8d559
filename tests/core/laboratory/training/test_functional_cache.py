"""The cache of training against the cache of rendering, on the same weights: block by block the same."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import DeepForcing, Full, PackForcing, SinkWindow, Window
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.functional_cache import FunctionalCache
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import denoise_block
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import commit_block, commit_due_block
from tests.exactness import DEEP, steps_off
from tests.small import (
    CONFIG,
    DENOISING,
    GRID,
    SmallCompressor,
    block_shape,
    small_cache,
    small_context,
    small_model,
)

BLOCKS = 9
POLICIES = {
    "full": (Full(), 3),
    "window": (Window(window_frames=7), 3),
    "sink_window": (SinkWindow(window_frames=8, sink_frames=2), 3),
    "sink_window, gap left": (SinkWindow(window_frames=8, sink_frames=2, realign=False), 3),
    "packforcing": (PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=2, bank_blocks=3, mid_span=0), 2),
    "span of 1.5": (
        PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=2, bank_blocks=3, mid_span=1.5),
        2,
    ),
    "two recent blocks": (
        PackForcing(sink_frames=4, recent_frames=4, top_k_blocks=2, bank_blocks=4, selector="future"),
        2,
    ),
    "selects again": (
        PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=2, bank_blocks=4, selector="cosine+newest"),
        2,
    ),
    "attention mass": (
        PackForcing(sink_frames=0, recent_frames=2, top_k_blocks=2, bank_blocks=4, selector="attention_mass"),
        2,
    ),
}


def functional_cache(policy, frames_per_block: int) -> FunctionalCache:
    rope = GridRope(CONFIG.head_dim, GRID)
    return FunctionalCache(policy.partitions(frames_per_block), CONFIG.num_layers, rope, sdpa)


def rolled_out(cache: FunctionalCache | KVCache, frames_per_block: int, blocks: int = BLOCKS):
    """(clean latents, selection) of each block of a rollout on `cache`."""
    model = small_model()
    text = model.encode_text(small_context())
    noise = seeded_noise(7, block_shape(frames_per_block))
    compressor, waiting = SmallCompressor(frames_per_block), {}
    for block in range(blocks):
        view = cache.begin_block()
        steps = denoise_block(model, text, view, noise, DENOISING.schedule, block)
        try:
            while True:
                next(steps)
        except StopIteration as done:
            latents = done.value
        yield latents, view.selection()
        waiting[block] = compressor.tokens(latents, None, block == 0)
        commit_block(model, text, cache, view, latents, 0.0)
        commit_due_block(model, text, cache, waiting)


@torch.no_grad()
@pytest.mark.parametrize("name", POLICIES)
def test_it_equals_the_cache_of_rendering_block_by_block(name: str):
    policy, frames = POLICIES[name]
    rendered = rolled_out(small_cache(policy, frames, BLOCKS * frames), frames)
    trained = rolled_out(functional_cache(policy, frames), frames)
    selected, worst = 0, 0.0
    for (expected, selection), (latents, own) in zip(rendered, trained, strict=True):
        assert own == selection
        selected += sum(len(choice) for choice in selection)
        worst = max(worst, steps_off(latents, expected))
    print(f"{name}: {BLOCKS} blocks, {selected} twins selected, {worst:.1f} rounding steps apart")
    assert worst < DEEP
    assert (selected > 0) == isinstance(policy, PackForcing)


@torch.no_grad()
def test_a_view_may_be_read_after_later_commits():
    policy, frames = POLICIES["packforcing"]
    model, text = small_model(), small_model().encode_text(small_context())
    noise = seeded_noise(7, block_shape(frames))
    cache, compressor, waiting = functional_cache(policy, frames), SmallCompressor(frames), {}
    views, before = [], []
    for block in range(6):
        view, latents = cache.begin_block(), noise(block, 0)
        before.append(model.flow(latents, torch.full((1, frames), 500.0), text, view))
        views.append(view)
        waiting[block] = compressor.tokens(latents, None, block == 0)
        commit_block(model, text, cache, view, latents, 0.0)
        commit_due_block(model, text, cache, waiting)
    for block, view in enumerate(views):
        again = model.flow(noise(block, 0), torch.full((1, frames), 500.0), text, view)
        assert torch.equal(again, before[block])


def test_full_rows_have_no_graph_and_twins_keep_theirs():
    policy, frames = POLICIES["packforcing"]
    model = small_model()
    text = model.encode_text(small_context())
    cache, noise = functional_cache(policy, frames), seeded_noise(7, block_shape(frames))
    leaves, tokens = {}, {}
    for block in range(5):
        leaves[block] = noise(block, 0).requires_grad_()
        commit_block(model, text, cache, cache.begin_block(), leaves[block], 0.0)
        if cache.due_block is not None:
            due = cache.due_block
            tokens[due] = SmallCompressor(frames).tokens(leaves[due].detach(), None, False).requires_grad_()
            with cache.commit_compressed() as writer:
                model.commit_tokens(tokens[due], torch.zeros(1, 1), text, writer)
    assert not any(rows.k.requires_grad or rows.v.requires_grad for kept in cache.past.values() for rows in kept)
    held = []
    for rows in cache.twins[max(cache.twins)]:
        rows.v.register_hook(lambda gradient: held.append((gradient.untyped_storage().nbytes(), gradient.nbytes)))
    model.flow(noise(5, 0), torch.full((1, frames), 500.0), text, cache.begin_block()).square().sum().backward()
    print("bytes that a gradient of a compressed block's values holds, and has:", held)
    assert held
    assert all(storage == own for storage, own in held)
    assert all(leaf.grad is None for leaf in leaves.values())
    norms = {block: float(t.grad.norm()) for block, t in tokens.items()}
    print("gradient at the tokens of each twin:", norms)
    assert set(norms) == set(cache.twins)
    assert all(norm > 0 for norm in norms.values())


def test_a_twin_that_is_due_and_a_pruning_plan_are_refused():
    policy, frames = POLICIES["packforcing"]
    model, cache = small_model(), functional_cache(policy, frames)
    text = model.encode_text(small_context())
    with torch.no_grad():
        for block in range(3):
            commit_block(model, text, cache, cache.begin_block(), seeded_noise(7, block_shape(frames))(block, 0), 0.0)
    with pytest.raises(PackForcingError, match="Block 1 has left"):
        cache.begin_block()
    with pytest.raises(PackForcingError, match="Choose packforcing, window"):
        functional_cache(DeepForcing(), 2)
