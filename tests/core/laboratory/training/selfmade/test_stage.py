"""What the compressor learns on self-made clips: layouts, the error, and its gradient clip by clip."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import Full
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.laboratory.training.compressor import compressed_tokens
from packforcing_core.laboratory.training.functional_cache import FunctionalCache, teacher_forced_views
from packforcing_core.laboratory.training.selfmade.clip_layouts import (
    MOST_BETWEEN,
    Layout,
    Shares,
    arranged,
    drawn_layout,
    memory_blocks,
)
from packforcing_core.laboratory.training.selfmade.clips import Clip
from packforcing_core.laboratory.training.selfmade.stage import compressed_blocks, flow_error
from tests.core.laboratory.training.selfmade.parts import small_base, small_clips, small_stage, small_texts
from tests.small import CONFIG, small_model
from tests.small_compressor import trained_high_res
from tests.small_training import FAST, gradient_norm, learn


def numbered(first: int, blocks: int = 5, frames: int = 3) -> Clip:
    """A clip whose block i holds the number `first` + i, in its latents and in its small ones."""
    numbers = torch.arange(first, first + blocks).float()
    latents = numbers.repeat_interleave(frames)[None, :, None, None].expand(16, -1, 4, 6)
    return Clip(latents, numbers.repeat_interleave(2)[None, :, None, None].expand(16, -1, 2, 2), "a prompt")


def told(tensor: torch.Tensor, each: int) -> list[int]:
    return tensor[0, 0, ::each, 0, 0].int().tolist()


def test_a_layout_puts_the_other_clips_blocks_where_it_says():
    clip, other = numbered(10), numbered(20)
    sample = arranged([clip], [other], Layout(target=4, newest=1, sink=2, between=4), 3)
    assert told(sample.long, 3) == [20, 21, 10, 11, 12, 22, 23, 24, 20, 13]
    assert told(sample.low_res, 2) == told(sample.long, 3)
    assert told(sample.short, 3) == [10, 11, 12, 13]
    assert told(sample.x0, 3) == [14]
    nothing = arranged([clip], [other], Layout(target=4, newest=1, sink=1, between=2, first=3), 3)
    assert (told(nothing.long, 3), told(nothing.short, 3)) == ([20, 21, 22, 13], [13])
    as_it_was = arranged([clip], [other], Layout(target=4, newest=1), 3)
    assert told(as_it_was.long, 3) == told(as_it_was.short, 3) == [10, 11, 12, 13]


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_every_layout_that_is_drawn_has_compressed_blocks_in_view(frames):
    base = small_base(frames)
    kinds = set()
    for number in range(200):
        for memory in base.learnt:
            random = torch.Generator().manual_seed(number)
            layout = drawn_layout(random, memory, base.clip.blocks, frames)
            sink, newest = memory_blocks(memory, frames)
            assert 0 < layout.target < base.clip.blocks
            assert layout.length > sink + newest
            assert layout.between <= MOST_BETWEEN
            kinds.add("nothing" if layout.first else "anew" if layout.sink or layout.between else "as it was")
    assert kinds == {"nothing", "anew", "as it was"}


def test_all_of_one_kind_can_be_asked_for():
    base = small_base(3)
    draws = [
        drawn_layout(torch.Generator().manual_seed(i), base.asked, 4, 3, Shares(0.0, 1.0)).first for i in range(20)
    ]
    assert all(draws)


@pytest.mark.parametrize("frames", [1, 3, 4])
@torch.no_grad()
def test_under_the_full_history_nothing_is_left_to_learn_and_under_the_memory_something_is(frames, tmp_path):
    base = small_base(frames)
    clips = small_clips(tmp_path, base, 2)
    layout = Layout(base.clip.blocks - 1, 1)
    sample = arranged([clips.read(0)], [clips.read(1)], layout, frames)
    levels, noise = torch.tensor([[0.9, 0.6]]), torch.randn(1, 2, *sample.x0.shape[1:])
    arguments = sample, small_texts, levels, noise
    error, size, _ = flow_error(small_model(), None, base, Full(), *arguments)
    assert error.item() < 1e-10 * size.item()
    under, *_ = flow_error(small_model(), None, base, base.asked, *arguments)
    print(f"blocks of {frames}: relative error zero-shot {under.item() / size.item():.2e}")
    assert under.item() > 1e-7 * size.item()


@torch.no_grad()
def test_the_view_is_that_of_teacher_forcing(tmp_path):
    """The slow twin: all views of all blocks, of which the last is asked."""
    base, branch, model = small_base(3), trained_high_res(), small_model()
    clips = small_clips(tmp_path, base, 2)
    layout = Layout(target=3, newest=1, sink=1, between=2)
    sample = arranged([clips.read(0)], [clips.read(1)], layout, 3)
    levels, noise = torch.tensor([[0.8]]), torch.randn(1, 1, *sample.x0.shape[1:])
    error, *_ = flow_error(model, branch, base, base.asked, sample, small_texts, levels, noise)
    text = model.encode_text(small_texts(sample.prompts))

    def flow(policy, clean, tokens):
        cache = FunctionalCache(policy.partitions(3), CONFIG.num_layers, base.rope("cpu"), model.attention)
        views = teacher_forced_views(model, text, cache, torch.cat((clean, sample.x0), dim=2), tokens)
        x = 0.2 * sample.x0 + 0.8 * noise[:, 0]
        return model.flow(x, torch.full((1, 3), 800.0), text, views[-1])

    small = {block: sample.low_res[:, :, 2 * block : 2 * block + 2] for block in range(layout.length)}
    twins = compressed_tokens(model, branch, sample.long, small, 3)
    wanted = flow(Full(), sample.short, None)
    slow = (flow(base.asked, sample.long, twins.__getitem__) - wanted).square().mean()
    print(f"error {error.item():.6e}, of the slow twin {slow.item():.6e}")
    assert abs(error.item() - slow.item()) < 1e-4 * slow.item()
    assert set(compressed_blocks(model, branch, base, base.asked, sample)) == {1, 2, 3, 4}


def test_the_gradient_of_a_step_is_that_of_its_clips_together(tmp_path):
    clips = small_clips(tmp_path, small_base(3), 4)
    branch = trained_high_res()
    stage = small_stage(clips, 4, branch, batch=3)
    update = stage.step(0)
    update.loss.backward()
    found = [p.grad.clone() for p in branch.parameters()]
    branch.zero_grad(set_to_none=True)
    asked = [stage.group_error(0, group) for group in range(3)]
    error = sum(own.error + stage.selection_weight * own.selection for own in asked) / 3
    error.backward()
    assert update.loss.item() == pytest.approx(error.item(), rel=1e-5)
    for gradient, parameter in zip(found, branch.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-9)
    assert gradient_norm(branch) > 0


def test_a_step_depends_on_its_number_and_the_seed_alone(tmp_path):
    clips = small_clips(tmp_path, small_base(3), 4)
    one, other = (small_stage(clips, 4, trained_high_res()) for _ in range(2))
    other.step(0)
    assert one.step(4).loss.item() == other.step(4).loss.item()
    assert one.step(4).loss.item() != one.step(5).loss.item()


def test_the_compressor_comes_nearer_to_the_full_history(tmp_path):
    clips = small_clips(tmp_path, small_base(3), 4)
    stage = small_stage(clips, 4, build_high_res(CONFIG.dim), at_once=2)
    stage.optimisation_of_compressor = FAST
    step = stage.step
    stage.step = lambda number: step(0)
    losses = learn(stage, 12)
    print(f"loss {losses[0]:.3e} at first, {losses[-1]:.3e} after 12 steps on the same clips")
    assert losses[-1] < 0.8 * losses[0]
