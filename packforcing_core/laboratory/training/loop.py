"""The training loop: steps, logs, and a folder that a run can be resumed from.

What happens in step s depends on (seed, s) and on the saved tensors alone: there is no other state, so a resumed run
takes the same next step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from tqdm import tqdm

from ...errors import PackForcingError
from . import ranks, saved
from .learner import Learner, Optimisation, stage_tensors
from .sharding import shard

LOG_FOLDER = "log"


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


class Stage(Protocol):
    """One thing to learn. `networks` are what the steps update, by name; each has its `optimisation`."""

    networks: Mapping[str, nn.Module]
    optimisation: Mapping[str, Optimisation]

    def step(self, number: int) -> Update:
        """The loss of step `number` (from 0), drawn from the stage's seed and that number.

        It is the mean over this rank's samples; which network and which figures is the same on all ranks.
        """
        ...


class Training:
    """Runs a stage for `steps` steps (inf: until whoever runs it stops) in `folder`, from where its state left off.

    In a run of several ranks the stage's networks are sharded.
    """

    def __init__(self, stage: Stage, steps: float, folder: Path, save_every: int = 500):
        self.stage, self.steps, self.folder, self.save_every = stage, steps, folder, save_every
        for network in stage.networks.values():
            shard(network)
        self.learners = {name: Learner(net, stage.optimisation[name]) for name, net in stage.networks.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self.done = saved.saved_step(folder) or 0
        if self.done:
            saved.load(stage_tensors(self.learners), folder, self.done)

    def run(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields every step's number and figures; saves as it goes, and at the end."""
        from torch.utils.tensorboard import SummaryWriter

        first = ranks.rank() == 0
        log = SummaryWriter(self.folder / LOG_FOLDER, purge_step=self.done) if first else None
        bar = tqdm(total=self.steps, initial=self.done, unit="step", mininterval=5.0, disable=not first)
        try:
            while self.done < self.steps:
                figures = self._step()
                if log:
                    for name, value in figures.items():
                        log.add_scalar(name, value, self.done)
                bar.update()
                bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)
                self.done += 1
                if self.done % self.save_every == 0 or self.done == self.steps:
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
        if not all(map(math.isfinite, norms.values())):
            # The norms are those of all ranks, and no loss that is not finite has a finite gradient.
            raise PackForcingError(
                f"Step {self.done} gave {figures} and gradients of norms {norms}. The folder holds an earlier state; "
                "resume with a lower learning rate."
            )
        for learner in learners.values():
            learner.update(self.done, self.steps)
        return {**figures, **{f"gradient/{name}": norm for name, norm in norms.items()}}

    def save(self) -> None:
        """Writes the state so that no crash can tear it. All ranks call it."""
        saved.save(stage_tensors(self.learners), self.folder, self.done)
