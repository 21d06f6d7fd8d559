"""The denoising schedule of the Self-Forcing family, as a plain list of noise levels.

Flow matching with a time shift S: sigma(u) = S u / (1 + (S - 1) u), timestep = 1000 sigma. Upstream reads sigma from a
table of 1000 entries, u = 1 - i/1000; so does this, so that the values match.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINING_STEPS = 1000


def shifted_sigma(u: float, shift: float) -> float:
    """The noise level at u in 0..1 of the unshifted schedule."""
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class Schedule:
    """The model calls that take a block from noise to clean: a timestep for the model and a sigma for the arithmetic
    each.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def warped(cls, steps: tuple[float, ...], shift: float) -> Schedule:
        """Steps on the unshifted 1000-step grid: (1000, 750, 500, 250) at shift 5 -> 1000, 937.5, 833.33, 625."""
        table = [shifted_sigma(1 - i / TRAINING_STEPS, shift) for i in range(TRAINING_STEPS)]
        sigmas = tuple(table[TRAINING_STEPS - round(step)] for step in steps)
        return cls(tuple(TRAINING_STEPS * sigma for sigma in sigmas), sigmas)

    @classmethod
    def unwarped(cls, steps: tuple[float, ...], shift: float) -> Schedule:
        """Steps that are timesteps already (CausVid): sigma is the nearest entry of the shifted table."""
        table = [shifted_sigma(1 - i / TRAINING_STEPS, shift) for i in range(TRAINING_STEPS)]
        sigmas = tuple(min(table, key=lambda sigma: abs(TRAINING_STEPS * sigma - step)) for step in steps)
        return cls(tuple(float(step) for step in steps), sigmas)

    def __len__(self) -> int:
        return len(self.timesteps)
