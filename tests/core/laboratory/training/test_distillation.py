"""Few steps from many: where the teacher's ODE ends, and a student that says so at once."""

from __future__ import annotations

from itertools import pairwise

import torch

from packforcing_core.cache.config import Full, PackForcing
from packforcing_core.laboratory.training.distillation import DistillationStage
from packforcing_core.laboratory.training.flow import teacher_forced_flow
from packforcing_core.rope import GridRope
from packforcing_core.sampler.schedule import Schedule
from tests.exactness import DEEP, steps_off
from tests.small import CONFIG, GRID, small_model
from tests.small_compressor import random_latents, trained_high_res
from tests.small_training import FAST, FRAMES_PER_BLOCK, SmallClips, held_out_loss, learn, trainable_model

SHORT = PackForcing(sink_frames=2, recent_frames=2, mid_span=0)
FEW = Schedule.warped((1000.0, 500.0), shift=5.0).sigmas


def distillation(**settings) -> DistillationStage:
    return DistillationStage(
        trainable_model(),
        SmallClips(blocks=4),
        GridRope(CONFIG.head_dim, GRID),
        FAST,
        frames_per_block=FRAMES_PER_BLOCK,
        teacher=small_model(),
        high_res=trained_high_res(),
        memories=(SHORT, Full()),
        sigmas=FEW,
        teacher_steps=3,
        **settings,
    )


@torch.no_grad()
def test_the_destination_is_what_euler_steps_of_whole_passes_give():
    stage = distillation(guidance=2.0)
    batch = stage.batches(0)
    x = random_latents(8, 2 * GRID[0], 2 * GRID[1], batch=2)
    sigma = torch.tensor([[1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 1.0, 1.0], [0.5] * 8])
    made = stage.destination(batch.latents, x, sigma, batch, Full())
    _, seen = stage.plan(Full(), 4)
    steps = []
    for u in sigma / (5 - 4 * sigma), sigma / (5 - 4 * sigma) * 2 / 3, sigma / (5 - 4 * sigma) / 3, 0 * sigma:
        steps.append(5 * u / (1 + 4 * u))
    for level, following in pairwise(steps):
        with_prompt, without = (
            teacher_forced_flow(stage.teacher, batch.latents, x, level, context, seen)
            for context in (batch.context, torch.zeros_like(batch.context))
        )
        x = x + (following - level)[:, None, :, None, None] * (2 * with_prompt - without)
    print(f"{steps_off(made, x):.1f} rounding steps from the formula")
    assert steps_off(made, x) < DEEP


@torch.no_grad()
def test_teacher_and_student_see_the_same_twins():
    stage = distillation(precision=torch.float32)
    batch, x = stage.batches(0), random_latents(8, 2 * GRID[0], 2 * GRID[1], batch=2)
    sigma = torch.full((2, 8), 0.6)
    student = stage.flow(batch.latents, x, sigma, batch, SHORT)
    text, views = stage._prompted(batch, batch.latents, SHORT)
    assert steps_off(stage._teacher_flow(x, sigma, text, views), student) < DEEP


def test_the_student_lowers_its_loss_and_the_teacher_stays():
    stage = distillation()
    before = [p.clone() for p in stage.teacher.net.parameters()]
    first = held_out_loss(stage)
    learn(stage, 8)
    last = held_out_loss(stage)
    print(f"distillation: loss {first:.3f} before, {last:.3f} after 8 steps")
    assert last < 0.9 * first
    assert all(torch.equal(a, b) for a, b in zip(before, stage.teacher.net.parameters(), strict=True))
    assert all(p.grad is None for p in stage.high_res.parameters())
    assert set(stage.networks) == {"causal"}


def test_a_step_depends_on_its_number_and_the_weights_alone():
    one, other = distillation(seed=3), distillation(seed=3)
    other.step(0)
    assert one.step(4).loss.item() == other.step(4).loss.item()
