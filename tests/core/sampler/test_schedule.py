"""The schedules of CHECKPOINTS: exact values, and a table written as plainly as upstream's formula."""

from __future__ import annotations

import math

import pytest

from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.errors import PackForcingError
from packforcing_core.sampler.denoising import Denoising
from packforcing_core.sampler.schedule import Schedule

FOUR = (1000.0, 750.0, 500.0, 250.0)


def table(shift: float) -> list[float]:
    """t_0 .. t_999 and a last 0."""
    timesteps = []
    for i in range(1000):
        s = 1 - i / 1000
        timesteps.append(1000 * shift * s / (1 + (shift - 1) * s))
    return [*timesteps, 0.0]


@pytest.mark.parametrize(
    ("steps", "shift", "timesteps"),
    [
        (FOUR, 5.0, (1000, 937.5, 2500 / 3, 625)),
        ((1000.0, 800.0, 600.0, 400.0, 200.0), 5.0, (1000, 952.381, 882.353, 769.231, 555.556)),
        (FOUR, 8.0, (1000, 960, 888.889, 727.273)),
        (FOUR, 1.0, FOUR),
        ((1000.0,), 5.0, (1000,)),
    ],
)
def test_warped_steps_have_the_published_timesteps(steps, shift, timesteps):
    made = Schedule.warped(steps, shift)
    print("timesteps " + ", ".join(f"{t:.4f}" for t in made.timesteps))
    assert made.timesteps == pytest.approx(timesteps, abs=5e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_every_step_is_looked_up_where_upstream_looks_it_up(shift):
    steps = tuple(float(step) for step in range(1000, 0, -1))
    made = Schedule.warped(steps, shift)
    expected = [table(shift)[1000 - int(step)] for step in steps]
    assert made.timesteps == pytest.approx(expected, rel=1e-12)  # Both in float64.


@pytest.mark.parametrize("shift", [5.0, 8.0])
def test_a_warped_timestep_is_a_thousand_sigmas(shift):
    made = Schedule.warped(FOUR, shift)
    assert made.timesteps == tuple(1000 * sigma for sigma in made.sigmas)
    assert made.sigmas[0] == 1.0
    assert len(made) == 4


def test_causvids_timesteps_stay_and_their_sigma_is_the_nearest_of_the_table():
    steps, shift = (1000.0, 757.0, 522.0), 8.0
    made = Schedule.unwarped(steps, shift)
    assert made.timesteps == steps
    for step, sigma in zip(steps, made.sigmas, strict=True):
        nearest = min(table(shift), key=lambda t: abs(t - step))
        print(f"timestep {step:g}: sigma {sigma:.6f}, {abs(1000 * sigma - step):.2f} of a timestep away")
        assert 1000 * sigma == pytest.approx(nearest, abs=1e-9)


def test_families_are_sampled_as_published():
    assert Denoising.of_family(FAMILIES["self-forcing"]).schedule == Schedule.warped(FOUR, 5.0)
    two = Denoising.of_family(FAMILIES["causal-forcing-2step"])
    assert [len(two.of_block(block)) for block in range(4)] == [4, 2, 2, 2]
    assert two.of_block(0) == Schedule.warped(FOUR, 5.0)
    assert two.of_block(1).timesteps == pytest.approx((1000, 2500 / 3))
    one = Denoising.of_family(FAMILIES["causal-forcing-1step"])
    assert [len(one.of_block(block)) for block in range(3)] == [4, 1, 1]
    causvid = Denoising.of_family(FAMILIES["causvid"])
    assert causvid.schedule.timesteps == (1000, 757, 522)
    assert {Denoising.of_family(family).context_noise for family in FAMILIES.values()} == {0.0}


@pytest.mark.parametrize("build", [Schedule.warped, Schedule.unwarped])
@pytest.mark.parametrize("shift", [0.0, -5.0, math.nan, math.inf])
def test_a_shift_that_bends_nothing_is_refused(build, shift):
    with pytest.raises(PackForcingError, match=f"Got shift {shift}; expected a positive number"):
        build(FOUR, shift)


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (Schedule.warped, (1000.0, 750.4, 750.3)),
        (Schedule.warped, (1000.0, 999.9)),
        (Schedule.warped, (500.0, 750.0)),
        (Schedule.unwarped, (1000.0, 999.9)),
        (Schedule.unwarped, (757.0, 757.0)),
    ],
)
def test_steps_that_share_a_noise_level_are_refused(build, steps):
    with pytest.raises(
        PackForcingError, match=f"steps {steps[-2]} and {steps[-1]} have the noise levels.*further apart"
    ):
        build(steps, 5.0)


@pytest.mark.parametrize("build", [Schedule.warped, Schedule.unwarped])
@pytest.mark.parametrize("step", [0.3, 0.0, -250.0, 1001.0, math.nan])
def test_a_step_off_the_table_is_refused(build, step):
    with pytest.raises(PackForcingError, match=f"Got timestep {step}; expected numbers from 1 to 1000"):
        build((1000.0, step), 5.0)
