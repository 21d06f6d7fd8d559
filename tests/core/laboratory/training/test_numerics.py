"""Gradients that can be trusted: of memory that was written, and refused where they jump."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.learner import GradientGuard, Optimisation
from packforcing_core.laboratory.training.loop import REFUSALS, Training, Update
from packforcing_core.laboratory.training.precision import training_precision
from tests.small_compressor import trained_high_res

RATE = Optimisation(1e-2, warmup=0, final_rate=1.0, average=0.9)


def poison_freed_memory() -> None:
    """Leaves 1e30 in memory that the next allocations get, at the sizes that a branch's gradients have."""
    for count in (200, 5_000, 200_000):
        junk = [torch.full((count,), 1e30) for _ in range(20)]
        del junk


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_of_the_branch_are_those_of_float32_whatever_freed_memory_holds(precision):
    """With bf16 convolutions this is 7e-3 on any CPU, and 1e30 on one with AVX512_BF16 and without AMX."""
    branch = build_high_res(256, seed=1)
    nn.init.normal_(branch.layers[-1].weight, std=0.02, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(8, 16, 4, 8, 16, generator=generator)
    towards = 1e-6 * torch.randn(branch(latents).shape, generator=generator)
    found = []
    for trial in range(4):
        branch.zero_grad()
        if trial:
            poison_freed_memory()
        with torch.autocast("cpu", precision, enabled=trial > 0 and precision != torch.float32):
            (branch(latents).float() * towards).sum().backward()
        found.append([p.grad.double() for p in branch.parameters()])
    reference, *others = found
    errors = [
        max(float((own - true).norm() / true.norm()) for own, true in zip(other, reference, strict=True))
        for other in others
    ]
    print(f"{precision}: gradients of the branch off by {errors} of their norm")
    assert max(errors) < 1e-5


def test_a_branch_on_the_meta_device_runs_under_autocast():
    branch = trained_high_res().to("meta")
    assert branch(torch.empty(1, 16, 2, 4, 6, device="meta")).device.type == "meta"


def test_a_cpu_without_bf16_units_trains_in_float32(monkeypatch):
    for units, expected in (({}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units, raising=False)
        assert training_precision(torch.device("cpu")) == expected
    assert training_precision(torch.device("cuda")) == torch.bfloat16


class Line:
    """Pulls a number to 3; in the steps `wild` its gradient is `factor` times as long."""

    def __init__(self, wild=(), factor: float = 1e18):
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.network.weight)
        self.wild, self.factor = wild, factor
        self.networks, self.optimisation = {"net": self.network}, {"net": RATE}

    def step(self, number: int) -> Update:
        loss = (self.network.weight - 3).square().sum()
        return Update("net", loss * (self.factor if number in self.wild else 1.0))


def state(training: Training) -> dict[str, torch.Tensor]:
    tensors = training.learners["net"].tensors()
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if "guard" not in name}


@pytest.mark.parametrize("factor", [1e3, 1e18, math.inf, math.nan])
def test_a_step_whose_gradient_jumps_changes_nothing_and_is_said(factor, tmp_path, capsys):
    training = Training(Line(wild=(20,), factor=factor), 40, tmp_path)
    before = after = None
    for number, figures in training.run():
        if number == 19:
            before = state(training)
        if number == 20:
            after, told = state(training), figures
    assert set(before) == set(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert told["refused/net"] == 1
    assert figures["refused/net"] == 1
    assert "Step 20 is skipped" in capsys.readouterr().err
    # The one refused step apart, the training is what it would have been.
    calm = Training(Line(), 39, tmp_path / "calm")
    list(calm.run())
    print(
        f"weights: {training.stage.network.weight.item():.6f}, without the jump {calm.stage.network.weight.item():.6f}"
    )
    assert torch.equal(training.stage.network.weight, calm.stage.network.weight)


def test_a_resumed_training_refuses_the_same_steps(tmp_path):
    whole = Training(Line(wild=(18,), factor=50), 24, tmp_path / "whole")
    list(whole.run())
    stopped = Training(Line(wild=(18,), factor=50), 24, tmp_path / "stopped", save_every=17)
    list(islice(stopped.run(), 17))
    resumed = Training(Line(wild=(18,), factor=50), 24, tmp_path / "stopped")
    assert resumed.done == 17
    list(resumed.run())
    assert whole.learners["net"].guard.refused == resumed.learners["net"].guard.refused == 1
    assert torch.equal(whole.stage.network.weight, resumed.stage.network.weight)


def test_gradients_that_go_on_jumping_end_the_training(tmp_path):
    training = Training(Line(wild=range(20, 99), factor=math.nan), 99, tmp_path)
    with pytest.raises(PackForcingError, match=f"{REFUSALS + 1} steps in a row.*lower learning rate"):
        list(training.run())


def test_a_guard_knows_no_jump_before_it_knows_what_is_usual():
    guard = GradientGuard()
    for norm in [1.0] * (guard.ENOUGH - 1):
        assert not guard.jumps(1e9)
        guard.take(norm)
        guard.take(0.0)  # a step without any gradient
    guard.take(1.0)
    assert guard.jumps(1e9)
    assert not guard.jumps(guard.JUMP)
    assert guard.jumps(math.inf)


def test_a_training_ends_by_time_with_its_state_and_its_rate_down(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 6))  # each call 6 s later: so each step takes 6 s
    monkeypatch.setattr("packforcing_core.laboratory.training.loop.time.monotonic", lambda: next(clock))
    stage = Line()
    stage.optimisation = {"net": replace(RATE, final_rate=0.1)}
    training = Training(stage, 10**6, tmp_path, minutes=3)
    steps = [number for number, _ in training.run()]
    rate = training.learners["net"].optimisers[0].param_groups[0]["lr"]
    print(f"{len(steps)} steps of 6 s in 3 minutes; the last rate is {rate:.2e}")
    assert len(steps) == 30
    assert rate < 0.12 * RATE.learning_rate
    resumed = Training(Line(), 10**6, tmp_path, minutes=3)
    assert (resumed.done, resumed.ended) == (30, True)
    assert len(list(Training(Line(), 10**6, tmp_path, minutes=4).run())) == 10
    assert list(Training(Line(), 10**6, tmp_path, minutes=0).run()) == []
