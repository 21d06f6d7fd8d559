"""The training loop: steps, logs, and a folder from which a run can be resumed.

Step s depends only on (seed, s) and the saved tensors, so a resumed run takes the same next step. With a time limit
this does not hold, because the learning rate depends on the elapsed time.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import PackForcingError
from . import ranks, saved
from .learner import Learner, Optimisation, stage_tensors
from .sharding import shard

LOG_FOLDER = "log"
REFUSALS = 8
"""Maximum number of consecutive steps that may be skipped because of gradient spikes; one more ends the training."""


@dataclass(frozen=True)
class Update:
    """The result of one step: which of the stage's networks to update, the loss, and figures for the log."""

    network: str | tuple[str, ...]
    loss: Tensor
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.network,) if isinstance(self.network, str) else self.network


class Stage(Protocol):
    """A training task. `networks` are those that the steps update, by name; each has its `optimisation`."""

    @property
    def networks(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimisation(self) -> Mapping[str, Optimisation]: ...

    def step(self, number: int) -> Update:
        """Returns the loss of step `number` (from 0), which depends only on the stage's seed and that number.

        The loss is the mean over this rank's samples. The networks to update and the names of the figures are the same
        on all ranks.
        """
        ...


class Training:
    """Runs a stage for `steps` steps (inf: until the caller stops) in `folder`, from the saved state if there is one.

    With `minutes` it also ends after that time, counted over all runs in the folder; the learning rate schedule is then
    fitted to the time, and ends at the same final rate. With several ranks the stage's networks are sharded.
    """

    def __init__(self, stage: Stage, steps: float, folder: Path, save_every: int = 500, minutes: float | None = None):
        self.stage, self.steps, self.folder, self.save_every = stage, steps, folder, save_every
        self.minutes, self.seconds = minutes, torch.zeros((), dtype=torch.float64)
        for network in stage.networks.values():
            shard(network)
        self.learners = {name: Learner(net, stage.optimisation[name]) for name, net in stage.networks.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self.done = saved.saved_step(folder) or 0
        if self.done:
            saved.load(self._tensors(), folder, self.done)

    def run(self) -> Generator[tuple[int, dict[str, float]], None, None]:
        """Yields every step's number and figures. Saves the state every `save_every` steps and at the end."""
        from torch.utils.tensorboard import SummaryWriter

        first = ranks.rank() == 0
        log = SummaryWriter(self.folder / LOG_FOLDER, purge_step=self.done) if first else None
        bar = tqdm(total=self.steps, initial=self.done, unit="step", mininterval=5.0, disable=not first)
        try:
            while not self.ended:
                began = time.monotonic()
                figures = self._step()
                self._pass(time.monotonic() - began)
                if log:
                    for name, value in figures.items():
                        log.add_scalar(name, value, self.done)
                bar.update()
                bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)
                self.done += 1
                if self.done % self.save_every == 0 or self.ended:
                    self.save()
                yield self.done - 1, figures
        finally:
            bar.close()
            if log:
                log.close()

    def _step(self) -> dict[str, float]:
        update = self.stage.step(self.done)
        loss, networks = update.loss.detach(), update.networks
        found = {f"loss/{'+'.join(networks)}": loss.item(), **update.figures}
        figures = ranks.mean_figures(found, loss.device)
        learners = {name: self.learners[name] for name in networks}
        for learner in learners.values():
            learner.clear()
        update.loss.backward()
        norms = {name: learner.gather_gradients() for name, learner in learners.items()}
        # The norms are the same on all ranks, and a loss that is not finite has no finite gradient.
        if any(learners[name].guard.jumps(norm) for name, norm in norms.items()):
            self._refuse(learners, figures, norms)
        else:
            for name, learner in learners.items():
                learner.guard.take(norms[name])
                learner.update(self.done, self._steps_in_all)
        for learner in self.learners.values():
            learner.clear()  # Frees the gradients before the next step's activations or a score.
        refused = {f"refused/{name}": float(learner.guard.refused) for name, learner in learners.items()}
        return {**figures, **{f"gradient/{name}": norm for name, norm in norms.items()}, **refused}

    def _refuse(
        self, learners: Mapping[str, Learner], figures: Mapping[str, float], norms: Mapping[str, float]
    ) -> None:
        """Skips a step: networks, moments and averages stay unchanged, and a message is printed. Raises
        PackForcingError after too many consecutive skipped steps.
        """
        for learner in learners.values():
            learner.guard.refuse()
            learner.clear()
        in_a_row = max(learner.guard.in_a_row for learner in learners.values())
        if in_a_row > REFUSALS:
            raise PackForcingError(
                f"Step {self.done} gave {figures} and gradients of norms {norms}, and {in_a_row} steps in a row were "
                "skipped for that. The folder holds an earlier state; resume with a lower learning rate."
            )
        if ranks.rank() == 0:
            longest = {name: learner.guard.longest for name, learner in learners.items()}
            refused = max(learner.guard.refused for learner in learners.values())
            tqdm.write(
                f"Step {self.done} is skipped: gradient norms {norms}, previously at most {longest}. Skipped so far: "
                f"{refused}.",
                file=sys.stderr,
            )

    @property
    def ended(self) -> bool:
        """Whether all steps are done or the time has passed."""
        return self.done >= self.steps or self._share_of_time >= 1

    @property
    def _share_of_time(self) -> float:
        if self.minutes is None:
            return 0.0
        return float(self.seconds) / (60 * self.minutes) if self.minutes > 0 else 1.0

    @property
    def _steps_in_all(self) -> float:
        """The estimated total number of steps, from the pace so far."""
        if not (self.minutes and self._share_of_time):
            return self.steps
        return min(self.steps, max(self.done + 1, math.ceil(self.done / self._share_of_time)))

    def _pass(self, seconds: float) -> None:
        """Adds the time of a step, averaged over the ranks so that all have the same value."""
        self.seconds += ranks.mean_figures({"seconds": seconds}, next(self._parameters()).device)["seconds"]

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for learner in self.learners.values() for parameter in learner.parameters)

    def _tensors(self) -> dict[str, Tensor]:
        return {**stage_tensors(self.learners), "training.seconds": self.seconds}

    def save(self) -> None:
        """Writes the state. A crash during the write leaves the previous state intact. All ranks must call it."""
        saved.save(self._tensors(), self.folder, self.done)
