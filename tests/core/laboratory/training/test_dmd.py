"""Distribution matching on rollouts: the rhythm, the direction, and who learns from what."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from packforcing_core.cache.config import PackForcing
from packforcing_core.laboratory.training.dmd import WAN_CRITIC, WAN_GENERATOR, DMDStage
from packforcing_core.laboratory.training.flow import bidirectional_flow
from packforcing_core.laboratory.training.randomness import SampleNoise
from packforcing_core.laboratory.training.self_forcing import SelfForcing
from packforcing_core.model.causal import CausalWan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.schedule import Schedule
from tests.small import CONFIG, GRID, small_net
from tests.small_compressor import trained_high_res
from tests.small_training import FAST, FRAMES_PER_BLOCK, SmallClips, gradient_norm, held_out_loss, learn

SHORT = PackForcing(sink_frames=2, recent_frames=2, mid_span=0)
ROPE = GridRope(CONFIG.head_dim, GRID)


def dmd_stage(high_res=None, **settings) -> DMDStage:
    model, real, fake = (CausalWan(small_net(seed=seed).requires_grad_(True), CONFIG) for seed in (0, 1, 1))
    schedule = Schedule.warped((1000.0, 500.0), shift=5.0)
    generator = SelfForcing(model, ROPE, high_res, None, (SHORT,), schedule, FRAMES_PER_BLOCK)
    rates = {f"optimisation_of_{name}": FAST for name in ("generator", "compressor", "critic")}
    return DMDStage(generator, real, fake, SmallClips(blocks=4), ROPE, **(rates | settings))


def test_five_updates_of_the_critic_for_each_of_the_generator():
    stage = dmd_stage(trained_high_res())
    updated = [stage.step(number).networks for number in range(12)]
    assert updated == ([("critic",)] * 5 + [("generator", "compressor")]) * 2
    assert set(stage.networks) == set(stage.optimisation) == {"generator", "compressor", "critic"}
    assert "compressor" not in dmd_stage().networks


def test_every_policy_has_its_turn_with_generator_and_critic(monkeypatch):
    stage, turns = dmd_stage(trained_high_res()), []
    rollout = stage.generator.rollout
    monkeypatch.setattr(stage.generator, "rollout", lambda *args: turns.append(args[-1]) or rollout(*args[:-1]))
    for number in range(24):
        stage.step(number)
    of_generator = [turns[number] % 4 for number in range(24) if not stage.is_critics(number)]
    assert sorted(of_generator) == [0, 1, 2, 3]
    assert {turn % 4 for turn in turns[:5]} == {0, 1, 2, 3}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_each_loss_reaches_its_own_networks_and_no_other(precision: torch.dtype):
    stage = dmd_stage(trained_high_res(), precision=precision)
    for number in (0, 5):
        update = stage.step(number)
        for network in stage.networks.values():
            network.zero_grad(set_to_none=True)
        update.loss.backward()
        norms = {name: gradient_norm(network) for name, network in stage.networks.items()}
        print(f"step {number} in {precision}: {norms}")
        assert {name for name, norm in norms.items() if norm > 0} == set(update.networks)
        assert all(p.grad is None for p in stage.real.net.parameters())
    # Passes without a gradient come first; nothing that they leave behind may cut a weight off.
    missing = [name for name, p in stage.generator.model.net.named_parameters() if p.grad is None]
    assert missing == []


def test_the_gradient_is_the_normalised_difference_of_the_scores():
    stage = dmd_stage(precision=torch.float32)
    with torch.no_grad():
        for parameter in stage.fake.net.head.parameters():
            parameter.mul_(1.5)
    batch = stage.batches(0)
    clip = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(4)).requires_grad_()
    noise = partial(SampleNoise, 0, 5, batch.indices)
    loss, _ = stage.generator_loss(clip, batch, noise())
    loss.backward()
    # The plain way: one clip at a time, from the formula.
    random = noise()
    u = random.uniform((1,))
    sigmas = (5 * u / (1 + 4 * u)).clamp(0.02, 0.98)
    noises = random.normal(clip.shape[1:])
    for i, (x0, sigma, eps, context) in enumerate(zip(clip.detach(), sigmas, noises, batch.context, strict=True)):
        x, context = ((1 - sigma) * x0 + sigma * eps)[None], context[None]
        level = sigma.expand(1, x.shape[2])

        @torch.no_grad()
        def guess(model, text, x=x, level=level, sigma=sigma):
            return x - sigma * bidirectional_flow(model, x, level, text, ROPE)

        prompted, unprompted = guess(stage.real, context), guess(stage.real, torch.zeros_like(context))
        real = prompted + 3.0 * (prompted - unprompted)
        direction = (guess(stage.fake, context) - real) / (x0[None] - real).abs().mean()
        error = (clip.grad[i] * clip.numel() - direction[0]).abs().max().item()
        print(f"clip {i}: largest difference to the formula {error:.2e} of {direction.abs().max():.2f}")
        assert error < 1e-3 * direction.abs().max()


def test_the_critic_learns_the_generators_rollouts():
    stage = dmd_stage(trained_high_res(), critic_updates=1000)
    first = held_out_loss(stage, (200, 201))
    learn(stage, 8)
    last = held_out_loss(stage, (200, 201))
    print(f"critic: loss {first:.3f} before, {last:.3f} after 8 steps")
    assert last < 0.95 * first


def test_the_generator_moves_to_where_its_loss_points():
    slow = {f"optimisation_of_{name}": replace(FAST, learning_rate=1e-4) for name in ("generator", "compressor")}
    stage = dmd_stage(trained_high_res(), critic_updates=0, precision=torch.float32, **slow)
    batch = stage.batches(0)

    def made() -> torch.Tensor:
        return stage.rollout(0, batch, SampleNoise(0, 0, batch.indices), gradient=False)

    random = SampleNoise(0, 0, batch.indices)
    before = stage.rollout(0, batch, random, gradient=False)
    target = before - stage.direction(before, batch.context, random)
    learn(stage, 1)
    was, became = ((clip - target).square().mean().item() for clip in (before, made()))
    print(f"squared distance to the target: {was:.4f} before, {became:.4f} after an update")
    assert became < was


def test_a_step_depends_on_its_number_and_the_weights_alone():
    one, other = dmd_stage(trained_high_res(), seed=3), dmd_stage(trained_high_res(), seed=3)
    other.step(0)
    for number in (4, 5):
        assert one.step(number).loss.item() == other.step(number).loss.item()
    assert one.step(5).loss.item() != dmd_stage(trained_high_res(), seed=4).step(5).loss.item()


def test_exits_are_one_for_all_blocks_unless_set_otherwise():
    same, each = dmd_stage(), dmd_stage(same_exit=False)
    for number in range(10):
        assert len(set(same.exits(number, 5))) == 1
    assert {step for number in range(10) for step in same.exits(number, 5)} == {0, 1}
    assert any(len(set(each.exits(number, 5))) == 2 for number in range(10))


def test_the_rates_of_self_forcing_are_the_defaults():
    assert (WAN_GENERATOR.learning_rate, WAN_CRITIC.learning_rate) == (2e-6, 4e-7)
    assert WAN_GENERATOR.rate(0, 1000) == WAN_GENERATOR.rate(999, 1000) == 2e-6
    assert (WAN_GENERATOR.average, WAN_GENERATOR.average_from, WAN_CRITIC.average) == (0.99, 240, None)
