"""The training loop: optimiser, averaged weights, logs, and a folder that a run can be resumed from.

What happens in step s depends on (seed, s) and on the weights alone: there is no other state, so a resumed run takes
the same next step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import PackForcingError
from . import ranks

STATE_FILE = "state.pt"
LAYERS = "blocks."  # what the names of parameters inside a transformer's layers hold
Matrices = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Update:
    """What one step asks for: which of the stage's networks to update (one, or several together), by what loss, and
    figures for the log.
    """

    network: str | tuple[str, ...]
    loss: Tensor
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.network,) if isinstance(self.network, str) else self.network


@dataclass(frozen=True)
class Optimisation:
    """How one network is updated: AdamW after a linear warm-up, falling along a cosine to `final_rate` of the rate.

    With `matrices` "muon" the matrices of the transformer's layers follow Muon instead (https://kellerjordan.github.io/
    posts/muon/), scaled so that its updates are as large as AdamW's (arXiv 2502.16982) and one learning rate serves
    both. `average` is the decay of the exponential moving average of the weights, None for none, and `average_from`
    the step it begins at.
    """

    learning_rate: float
    warmup: int = 100
    final_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    matrices: Matrices = "adamw"
    average: float | None = None
    average_from: int = 0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * done)) / 2)


def build_optimisers(network: nn.Module, optimisation: Optimisation) -> list[torch.optim.Optimizer]:
    """AdamW for the trainable parameters of `network`, or Muon for the matrices of its layers and AdamW for the rest.

    PackForcingError where this PyTorch has no Muon, or the network no such matrices.
    """
    matrices, rest = [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            muon = optimisation.matrices == "muon" and parameter.ndim == 2 and LAYERS in name
            (matrices if muon else rest).append(parameter)
    adamw = torch.optim.AdamW(
        rest, lr=optimisation.learning_rate, betas=optimisation.betas, weight_decay=optimisation.weight_decay
    )
    if optimisation.matrices == "adamw":
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise PackForcingError(
            f"matrices is 'muon', but PyTorch {torch.__version__} has no torch.optim.Muon, which came with 2.9. "
            "Install a newer PyTorch, or choose 'adamw'."
        )
    if not matrices:
        raise PackForcingError(
            f"matrices is 'muon', but a {type(network).__name__} has no matrices in layers called '{LAYERS}N'. "
            "Choose 'adamw'."
        )
    muon = torch.optim.Muon(
        matrices,
        lr=optimisation.learning_rate,
        weight_decay=optimisation.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


class Stage(Protocol):
    """One thing to learn. `networks` are what the steps update, by name; each has its `optimisation`."""

    networks: Mapping[str, nn.Module]
    optimisation: Mapping[str, Optimisation]

    def step(self, number: int) -> Update:
        """The loss of step `number` (from 0), drawn from the stage's seed and that number."""
        ...


class Learner:
    """One network with its optimisers and the average of its weights."""

    def __init__(self, network: nn.Module, optimisation: Optimisation):
        self.network, self.optimisation = network, optimisation
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimisers = build_optimisers(network, optimisation)
        self.average = None if optimisation.average is None else [p.detach().clone() for p in self.parameters]

    def clear(self) -> None:
        """Forgets the gradients of the step before."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)

    def update(self, step: int, steps: int) -> float:
        """One optimiser step along the gradients that are there; returns their norm before clipping."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.optimisation.rate(step, steps)
        ranks.average(p.grad for p in self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optimisation.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        if self.average is not None:
            decay = self.optimisation.average if step >= self.optimisation.average_from else 0.0
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return float(norm)

    def averaged(self) -> dict[str, Tensor]:
        """The network's state dict with the averaged weights where there are some."""
        state = self.network.state_dict()
        if self.average is None:
            return state
        names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        return state | dict(zip(names, self.average, strict=True))

    def state(self) -> dict:
        return {
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
        }

    def load(self, state: Mapping) -> None:
        self.network.load_state_dict(state["network"])
        if len(state["optimisers"]) != len(self.optimisers):
            raise PackForcingError("The folder's training used other optimisers (`matrices`); go on with the same.")
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        if self.average is not None and state["average"] is not None:
            torch._foreach_copy_(self.average, state["average"])


class Training:
    """Runs a stage for `steps` steps in `folder`, from where the folder's state left off."""

    def __init__(self, stage: Stage, steps: int, folder: Path, save_every: int = 500):
        self.stage, self.steps, self.folder, self.save_every = stage, steps, folder, save_every
        self.learners = {name: Learner(net, stage.optimisation[name]) for name, net in stage.networks.items()}
        self.done = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).exists():
            self._resume()

    def run(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields every step's number and figures; saves as it goes, and at the end."""
        from torch.utils.tensorboard import SummaryWriter

        first = ranks.rank() == 0
        log = SummaryWriter(self.folder / "log", purge_step=self.done) if first else None
        bar = tqdm(total=self.steps, initial=self.done, unit="step", mininterval=5.0, disable=not first)
        while self.done < self.steps:
            figures = self._step()
            if log and self.done % 10 == 0:
                for name, value in figures.items():
                    log.add_scalar(name, value, self.done)
            bar.update()
            bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)
            self.done += 1
            if first and (self.done % self.save_every == 0 or self.done == self.steps):
                self.save()
            yield self.done - 1, figures
        bar.close()
        if log:
            log.close()

    def _step(self) -> dict[str, float]:
        update = self.stage.step(self.done)
        learners = {name: self.learners[name] for name in update.networks}
        if not torch.isfinite(update.loss):
            raise PackForcingError(
                f"The loss of step {self.done} is {update.loss.item()}. The folder holds the state before it; resume "
                "with a lower learning rate."
            )
        for learner in learners.values():
            learner.clear()
        update.loss.backward()
        norms = {f"gradient/{name}": learner.update(self.done, self.steps) for name, learner in learners.items()}
        return {f"loss/{'+'.join(learners)}": update.loss.item(), **norms, **update.figures}

    def save(self) -> None:
        """Writes the state so that no crash can tear it."""
        state = {"done": self.done, "learners": {name: learner.state() for name, learner in self.learners.items()}}
        temporary = self.folder / f"{STATE_FILE}.part"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / STATE_FILE)

    def _resume(self) -> None:
        state = torch.load(self.folder / STATE_FILE, map_location="cpu", weights_only=True)
        if set(state["learners"]) != set(self.learners):
            raise PackForcingError(
                f"{self.folder} holds a training of {sorted(state['learners'])}; this stage trains "
                f"{sorted(self.learners)}. Choose another folder."
            )
        self.done = state["done"]
        for name, learner in self.learners.items():
            learner.load(state["learners"][name])
