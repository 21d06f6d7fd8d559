"""The held-out score of a compressor, on clips that are not trained on.

For each distance in time, the score is the mean squared error of the next block's flow relative to its flow given the
full history, divided by the mean square of the latter. It is also computed for the zero-shot compressor and without
compressed blocks; the latter gives the scale, since it shows how much recall can improve.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ....cache.config import PackForcing
from ....cache.policy import AUTO
from ....compressor.high_res import HighRes
from ....geometry import PIXEL_FRAMES_PER_LATENT
from ....model.causal import CausalWan
from ..randomness import step_generator
from .base import FPS, Base
from .clip_layouts import MOST_BETWEEN, Layout, arranged, memory_blocks
from .clips import Clips
from .stage import flow_error
from .texts import Texts

BETWEEN = (0, 3, MOST_BETWEEN)
"""Numbers of unrelated blocks between the clip's past and its newest block before the target."""
LEVELS = 2
ZERO_SHOT, NO_MID = "zero-shot", "no mid"
PATIENCE, WORTH = 6, 0.01
"""Early stopping: training stops if the best of the last PATIENCE scores is not better than the best score before them
by the fraction WORTH.
"""


@dataclass(frozen=True)
class Score:
    """Relative errors by distance in seconds, after `steps` steps and `hours` of all runs together."""

    steps: int
    hours: float
    errors: Mapping[str, float]

    @property
    def mean(self) -> float:
        return sum(self.errors.values()) / len(self.errors)

    def __str__(self) -> str:
        parts = ", ".join(f"{error:.5f} at {seconds} s" for seconds, error in self.errors.items())
        return f"{self.mean:.5f} ({parts})"


@dataclass(frozen=True)
class Examiner:
    """Scores on the held-out clips `held`, each at every distance, with the same layouts and noise at every call."""

    model: CausalWan
    clips: Clips
    texts: Texts
    held: range

    @property
    def base(self) -> Base:
        return self.clips.base

    @torch.no_grad()
    def ask(self, high_res: HighRes | None, memory: PackForcing) -> dict[str, float]:
        """Returns the errors relative to the full history, by distance in seconds, formatted as text."""
        return {f"{self.seconds(between):.1f}": self._error(high_res, memory, between) for between in BETWEEN}

    def seconds(self, between: int) -> float:
        """Returns the seconds between the end of the clip's compressed past and the target block."""
        _, newest = memory_blocks(self.base.asked, self.base.clip.frames_per_block)
        frames = (between + newest) * self.base.clip.frames_per_block
        return frames * PIXEL_FRAMES_PER_LATENT / FPS

    def _error(self, high_res: HighRes | None, memory: PackForcing, between: int) -> float:
        frames = self.base.clip.frames_per_block
        sink, newest = memory_blocks(self.base.asked, frames)
        layout = Layout(self.base.clip.blocks - 1, newest, sink, between)
        sigmas = torch.tensor(self.base.denoising.schedule.sigmas)
        error = size = 0.0
        for index in self.held:
            random = step_generator(self.clips.seed, "held out", index, between)
            other = self.held[int(torch.randint(len(self.held), (), generator=random))]
            other = index ^ 1 if other == index or between % 2 else other
            sample = arranged([self.clips.read(index)], [self.clips.read(other)], layout, frames)
            levels = sigmas[torch.randint(len(sigmas), (1, LEVELS), generator=random)]
            noise = torch.randn(1, LEVELS, *sample.x0.shape[1:], generator=random)
            found = flow_error(self.model, high_res, self.base, memory, sample, self.texts, levels, noise)
            error, size = error + found.error.item(), size + found.wanted.item()
        return error / size

    def references(self) -> dict[str, dict[str, float]]:
        """Returns the scores to compare with: zero-shot as it is used for rendering, with the compressed blocks
        squeezed into the trained positions, and the same policy without compressed blocks.
        """
        asked = self.base.asked
        zero_shot = replace(asked, mid_span=float(AUTO))
        return {ZERO_SHOT: self.ask(None, zero_shot), NO_MID: self.ask(None, replace(asked, top_k_blocks=0))}


class Scores:
    """All scores of a training, stored in a file so that a resumed run has them."""

    def __init__(self, path: Path):
        self._path = path
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"references": {}, "scores": []}
        self.references: dict[str, dict[str, float]] = told["references"]
        self.scores = [Score(**score) for score in told["scores"]]

    def add(self, score: Score) -> None:
        """Adds a score. Later scores, of steps that a resumed run repeats, are removed."""
        self.scores = [old for old in self.scores if old.steps < score.steps] + [score]
        self.write()

    def write(self) -> None:
        told = {"references": self.references, "scores": [asdict(score) for score in self.scores]}
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps(told, indent=1), encoding="utf-8")
        os.replace(part, self._path)

    def after(self, steps: int) -> Score | None:
        return next((score for score in self.scores if score.steps == steps), None)

    @property
    def best(self) -> Score | None:
        return min(self.scores, key=lambda score: score.mean, default=None)

    @property
    def settled(self) -> bool:
        """Whether the score has stopped falling."""
        means = [score.mean for score in self.scores]
        return len(means) > PATIENCE and min(means[-PATIENCE:]) > (1 - WORTH) * min(means[:-PATIENCE])

    def lines(self) -> Iterator[str]:
        """Yields the latest and the first score, and the scores to compare with."""
        if self.scores:
            first, last = self.scores[0], self.scores[-1]
            yield f"relative error after {last.steps} steps: {last}; at first {first.mean:.5f}"
        for name, errors in self.references.items():
            yield f"  {name}: {Score(0, 0.0, errors)}"


def plot(scores: Scores, path: Path) -> Path | None:
    """Plots the scores over the steps. Returns the image's path, or None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [score.steps for score in scores.scores]
    for seconds in scores.scores[0].errors:
        axes.plot(steps, [score.errors[seconds] for score in scores.scores], marker=".", label=f"{seconds} s")
    for style, (name, errors) in zip(("--", ":"), scores.references.items(), strict=False):
        axes.axhline(_mean(list(errors.values())), color="grey", linestyle=style, label=name)
    axes.set(xlabel="steps", ylabel="error relative to the full history", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
