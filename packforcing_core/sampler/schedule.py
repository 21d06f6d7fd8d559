"""The denoising schedule of the Self-Forcing family, as a plain list of noise levels.

Flow matching with a time shift S: sigma(u) = S u / (1 + (S - 1) u), timestep = 1000 sigma. As upstream does, sigma is
read from a table of 1000 entries, u = 1 - i/1000, so that the values match.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ..errors import PackForcingError

TRAINING_STEPS = 1000


def shifted_sigma(u: float, shift: float) -> float:
    """The noise level at u in 0..1 of the unshifted schedule."""
    return shift * u / (1 + (shift - 1) * u)


def _sigma_table(steps: tuple[float, ...], shift: float) -> list[float]:
    """Sigmas at u = 1, 0.999, ..., 0.001. Raises PackForcingError if the shift or a step is out of range."""
    if not (math.isfinite(shift) and shift > 0):
        raise PackForcingError(f"Got shift {shift}; expected a positive number (5 is usual).")
    for step in steps:
        if not 1 <= step <= TRAINING_STEPS:
            raise PackForcingError(f"Got timestep {step}; expected numbers from 1 to {TRAINING_STEPS}.")
    return [shifted_sigma(1 - i / TRAINING_STEPS, shift) for i in range(TRAINING_STEPS)]


def _falling(steps: tuple[float, ...], sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """`sigmas`, checked to be strictly falling. Raises PackForcingError for steps that do not fall or are too close."""
    for (first, high), (second, low) in pairwise(zip(steps, sigmas, strict=True)):
        if low >= high:
            raise PackForcingError(
                f"Timesteps {first} and {second} have the noise levels {high:.4f} and {low:.4f}; expected "
                f"falling levels on a table of {TRAINING_STEPS} levels. Choose falling timesteps further apart."
            )
    return sigmas


@dataclass(frozen=True)
class Schedule:
    """The model calls that denoise a block: for each, a timestep for the model and a sigma for the update."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def warped(cls, steps: tuple[float, ...], shift: float) -> Schedule:
        """Steps on the unshifted 1000-step grid: (1000, 750, 500, 250) at shift 5 -> 1000, 937.5, 833.33, 625."""
        table = _sigma_table(steps, shift)
        sigmas = _falling(steps, tuple(table[TRAINING_STEPS - round(step)] for step in steps))
        return cls(tuple(TRAINING_STEPS * sigma for sigma in sigmas), sigmas)

    @classmethod
    def unwarped(cls, steps: tuple[float, ...], shift: float) -> Schedule:
        """Steps that are timesteps already (CausVid): sigma is the nearest entry of the shifted table."""
        table = _sigma_table(steps, shift)
        nearest = tuple(min(table, key=lambda sigma: abs(TRAINING_STEPS * sigma - step)) for step in steps)
        return cls(tuple(float(step) for step in steps), _falling(steps, nearest))

    def last_steps(self, share: float) -> Schedule:
        """The last `share` (0..1) of the steps, rounded, at least one. A checkpoint knows only the noise levels of its
        steps.
        """
        steps = max(1, round(share * len(self)))
        return Schedule(self.timesteps[-steps:], self.sigmas[-steps:])

    def __len__(self) -> int:
        return len(self.timesteps)
