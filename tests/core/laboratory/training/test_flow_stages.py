"""Teacher and causal model on tiny sizes: they learn, and recomputing layers changes nothing."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.laboratory.training.flow import CausalStage, NoiseLevels, TeacherStage
from packforcing_core.laboratory.training.learner import Optimisation
from packforcing_core.laboratory.training.randomness import SampleNoise, step_generator
from tests.core.laboratory.training.small_stages import causal, teacher
from tests.small_training import held_out_loss, learn

FAST = Optimisation(3e-3, warmup=0, final_rate=1.0)


def gradients(stage: TeacherStage | CausalStage, step: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    loss = stage.step(step).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in stage.model.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [teacher, causal])
def test_a_short_run_lowers_the_loss(build):
    stage = build(FAST)
    with torch.no_grad():
        before = held_out_loss(stage)
    losses = learn(stage, 40)
    with torch.no_grad():
        after = held_out_loss(stage)
    print(f"{build.__name__}: held out {before:.3f} -> {after:.3f}, trained {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert after < 0.8 * before


@pytest.mark.parametrize("build", [teacher, causal])
def test_recomputed_layers_give_the_same_loss_and_gradients(build):
    loss, kept = gradients(build())
    other_loss, recomputed = gradients(build(recompute=True))
    difference = max((kept[name] - recomputed[name]).abs().max().item() for name in kept)
    print(f"{build.__name__}: losses {abs(loss - other_loss):.1e} apart, {len(kept)} gradients {difference:.1e}")
    assert set(kept) == set(recomputed)
    assert loss == other_loss
    assert difference == 0.0


def test_recomputing_keeps_less_for_the_gradient():
    kept = []
    for recompute in (False, True):
        stage, sizes = causal(recompute=recompute), []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t
        )
        with hooks:
            stage.step(0)
        kept.append(sum(sizes))
    print(f"bytes that outer graph keeps: {kept[0]:,} without, {kept[1]:,} with")
    assert kept[1] < 0.2 * kept[0]


def test_a_sample_draws_the_same_wherever_it_is_in_the_batch():
    whole = SampleNoise(7, 3, range(4))
    parts = [SampleNoise(7, 3, indices) for indices in (range(0, 4, 2), range(1, 4, 2))]
    for draw in (lambda r: r.normal((2, 3)), lambda r: r.uniform(), lambda r: r.integers(9, (5,))):
        together = draw(whole)
        apart = [draw(part) for part in parts]
        assert torch.equal(together[0::2], apart[0])
        assert torch.equal(together[1::2], apart[1])


def test_generators_are_the_same_in_every_process():
    # Written down, since a hash that differs by process would pass any test within one.
    assert torch.randint(1 << 30, (2,), generator=step_generator(1, 2, "x")).tolist() == [358056992, 524488816]
    assert step_generator(1, 23).initial_seed() != step_generator(12, 3).initial_seed()


def test_a_share_of_the_noise_levels_is_the_samplers_own():
    steps = (1.0, 0.9375, 0.625)
    sigma = NoiseLevels(5.0, steps, few=0.5).draw(50, SampleNoise(0, 0, range(20)))
    own = torch.isin(sigma, torch.tensor(steps)).float().mean().item()
    print(f"{own:.2f} of {sigma.numel()} levels are the sampler's; all within {sigma.min():.3f} to {sigma.max():.3f}")
    assert 0.45 < own < 0.55
    assert 0 <= sigma.min() <= sigma.max() <= 1
