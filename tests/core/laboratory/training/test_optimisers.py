"""Which parameters follow which optimiser, and by how much they move."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice

import pytest
import torch
from torch import nn

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.learner import Learner, Optimisation, build_optimisers
from packforcing_core.laboratory.training.loop import Training, Update
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from tests.small import CONFIG

MUON = Optimisation(1e-3, warmup=0, matrices="muon")
NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")


def net() -> Wan:
    torch.manual_seed(0)
    return Wan(CONFIG, TorchOps)


class PullToTarget:
    """Pulls every parameter of a network towards a random target."""

    def __init__(self, optimisation: Optimisation):
        self.networks, self.optimisation = {"net": net()}, {"net": optimisation}

    def step(self, number: int) -> Update:
        generator = torch.Generator().manual_seed(5)
        losses = [
            (p - torch.randn(p.shape, generator=generator) / 30).square().sum()
            for p in self.networks["net"].parameters()
        ]
        return Update("net", torch.stack(losses).sum())


@NEEDS_MUON
def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest():
    network = net()
    adamw, muon = (
        {id(p) for group in optimiser.param_groups for p in group["params"]}
        for optimiser in build_optimisers(network, MUON)
    )
    names = {id(p): name for name, p in network.named_parameters()}
    assert adamw | muon == set(names)
    assert not adamw & muon
    assert {names[p].split(".", 2)[2] for p in muon} == {
        *(f"{a}_attn.{x}.weight" for a in ("self", "cross") for x in "qkvo"),
        *("ffn.0.weight", "ffn.2.weight"),
    }


@NEEDS_MUON
def test_a_muon_step_is_orthogonal_and_as_large_as_one_of_adamw():
    stage = PullToTarget(MUON)
    before = {name: p.detach().clone() for name, p in stage.networks["net"].named_parameters()}
    learner = Learner(stage.networks["net"], MUON)
    stage.step(0).loss.backward()
    learner.update(0, 1000)
    moved = {name: p.detach() - before[name] for name, p in stage.networks["net"].named_parameters()}
    for name in ("blocks.0.ffn.0.weight", "blocks.1.self_attn.q.weight"):
        singular = torch.linalg.svdvals(moved[name]) / (MUON.learning_rate * 0.2 * math.sqrt(max(moved[name].shape)))
        size = moved[name].square().mean().sqrt().item()
        print(f"{name}: singular values {singular.min():.2f} to {singular.max():.2f}, root mean square {size:.1e}")
        # Five iterations leave the smallest ones of a square random matrix behind.
        assert 0.5 < singular.quantile(0.05) < singular.max() < 1.3
        assert 0.1 * MUON.learning_rate < size < 0.3 * MUON.learning_rate
    # The first step of Adam is the learning rate for every number.
    assert moved["head.head.weight"].abs().mean().item() == pytest.approx(MUON.learning_rate, rel=1e-2)


@pytest.mark.parametrize("matrices", ["adamw", pytest.param("muon", marks=NEEDS_MUON)])
def test_a_resumed_training_takes_the_same_next_steps_bit_for_bit(matrices, tmp_path):
    optimisation = dataclasses.replace(MUON, average=0.9, matrices=matrices)
    whole = Training(PullToTarget(optimisation), 6, tmp_path / "whole", save_every=3)
    losses = [figures["loss/net"] for _, figures in whole.run()]
    stopped = Training(PullToTarget(optimisation), 6, tmp_path / "stopped", save_every=3)
    assert [number for number, _ in islice(stopped.run(), 4)] == [0, 1, 2, 3]
    resumed = Training(PullToTarget(optimisation), 6, tmp_path / "stopped", save_every=3)
    assert resumed.done == 3
    assert [figures["loss/net"] for _, figures in resumed.run()] == losses[3:]
    same = whole.learners["net"].averaged(), resumed.learners["net"].averaged()
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert losses[-1] < losses[0]


def test_a_learner_begins_as_a_fresh_optimiser_would():
    optimisation = dataclasses.replace(MUON, matrices="adamw", clip=1e9)
    stages = PullToTarget(optimisation), PullToTarget(optimisation)
    learner = Learner(stages[0].networks["net"], optimisation)
    (fresh,) = build_optimisers(stages[1].networks["net"], optimisation)
    for stage in stages:
        stage.step(0).loss.backward()
    learner.gather_gradients()
    learner.update(0, 1 << 40)
    fresh.step()
    pairs = zip(*(stage.networks["net"].parameters() for stage in stages), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@NEEDS_MUON
def test_muon_without_layers_is_refused():
    with pytest.raises(PackForcingError, match="no matrices in layers"):
        build_optimisers(nn.Sequential(nn.Linear(2, 2)), MUON)


def test_a_pytorch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(PackForcingError, match=r"came with 2\.9"):
        build_optimisers(net(), MUON)
