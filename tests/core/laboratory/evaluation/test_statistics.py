"""Intervals hold what they claim, on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation.statistics import compare, mean_interval, mean_intervals, share_interval

stats = pytest.importorskip("scipy.stats")

SEEDS, TRIALS = 16, 1000


def coverage(values: np.ndarray, truth: float) -> float:
    """The share of trials, the columns of values [S, TRIALS], whose interval holds the truth."""
    found = mean_intervals(values, np.random.default_rng(1), resamples=3000)
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("seeds", [8, 16, 32])
def test_intervals_of_normal_values_hold_the_mean_at_their_level(seeds: int):
    held = coverage(np.random.default_rng(0).normal(3.0, 2.0, (seeds, TRIALS)), 3.0)
    print(f"{seeds} seeds: 95 % intervals hold the mean in {held:.1%} of {TRIALS} trials")
    assert 0.925 <= held <= 0.975


def test_intervals_of_skewed_values_fall_little_short():
    rng = np.random.default_rng(0)
    rates = coverage(rng.beta(9.0, 1.0, (SEEDS, TRIALS)), 0.9)
    waits = coverage(rng.exponential(1.0, (SEEDS, TRIALS)), 1.0)
    print(f"rates near the ceiling: {rates:.1%}, exponential: {waits:.1%}")
    assert rates >= 0.91
    assert waits >= 0.90


def test_one_interval_is_that_of_its_column():
    columns = np.random.default_rng(0).normal(0, 1, (SEEDS, 3))
    alone = mean_interval(columns[:, 1], np.random.default_rng(1))
    among = mean_intervals(columns, np.random.default_rng(1))[1]
    assert (among.low, among.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


def test_the_interval_is_scipys_percentile_bootstrap_at_the_expanded_level():
    values = np.random.default_rng(0).gamma(2.0, size=SEEDS)
    found = mean_interval(values, np.random.default_rng(1), resamples=200_000)
    tail = stats.norm.sf(np.sqrt(SEEDS / (SEEDS - 1)) * stats.t.ppf(0.975, SEEDS - 1))
    slow = stats.bootstrap(
        (values,), np.mean, confidence_level=1 - 2 * tail, n_resamples=50_000, method="percentile", random_state=2
    ).confidence_interval
    plain = stats.bootstrap(
        (values,), np.mean, confidence_level=0.95, n_resamples=50_000, method="percentile", random_state=2
    ).confidence_interval
    print(f"here {found.low:.4f} {found.high:.4f}, scipy {slow.low:.4f} {slow.high:.4f}, unexpanded {plain}")
    assert (found.low, found.high) == pytest.approx((slow.low, slow.high), abs=0.02)
    assert found.high - found.low > 1.05 * (plain.high - plain.low)


def paired(rng: np.random.Generator, gains: list[float], spread: float = 0.5) -> tuple[np.ndarray, dict]:
    """Rows that share a large effect of the seed, and differ from the baseline by `gains` on average."""
    seed_effect = rng.normal(0.0, 5.0, SEEDS)
    rows = {str(index): seed_effect + gain + rng.normal(0, spread, SEEDS) for index, gain in enumerate(gains)}
    return seed_effect + rng.normal(0, spread, SEEDS), rows


def test_all_intervals_of_a_family_hold_together_at_the_level():
    rng = np.random.default_rng(3)
    gains = [0.0] * 6 + [0.2, 0.5, 1.0, -1.0]
    together = claimed = each = 0
    trials = 150
    for _ in range(trials):
        found = compare(*paired(rng, gains), rng, resamples=4_000)
        held = [one.difference.low <= gain <= one.difference.high for one, gain in zip(found, gains, strict=True)]
        together += all(held)
        each += sum(held) / len(held)
        claimed += any(one.p < 0.05 for one, gain in zip(found, gains, strict=True) if gain == 0)
    print(
        f"all ten intervals hold in {together / trials:.1%} of {trials} trials, each in {each / trials:.2%}; "
        f"a difference is claimed where there is none in {claimed / trials:.1%}"
    )
    assert together / trials >= 0.90
    assert claimed / trials <= 0.08


def test_pairs_find_what_the_seeds_would_bury():
    rng = np.random.default_rng(4)
    base, rows = paired(rng, [1.0, 0.0, -1.0, 0.0])
    better, same, worse, also_same = compare(base, rows, rng)
    print(*(f"{one.name}: {one.difference}, p {one.p:.5f}" for one in (better, same, worse, also_same)), sep="\n")
    assert better.decided
    assert better.difference.low > 0
    assert worse.decided
    assert worse.difference.high < 0
    assert not same.decided
    assert not also_same.decided
    assert max(better.p, worse.p) < 0.01 < min(same.p, also_same.p)
    # The intervals of the means themselves overlap: the seeds differ by far more than the rows.
    one, other = mean_interval(base, rng), mean_interval(rows["0"], rng)
    assert one.low < other.mean < one.high


def test_more_comparisons_widen_the_intervals():
    rng = np.random.default_rng(5)
    base, rows = paired(rng, [1.0] * 20)
    (alone,) = compare(base, {"0": rows["0"]}, rng)
    among = compare(base, rows, rng)[0]
    assert among.difference.low < alone.difference.low < alone.difference.high < among.difference.high
    assert among.p >= alone.p


@pytest.mark.parametrize("seeds", [8, 20])
def test_p_is_that_of_scipys_permutation_test(seeds: int):
    rng = np.random.default_rng(6)
    base, row = rng.normal(0, 1, seeds), rng.normal(0.5, 1, seeds)
    (found,) = compare(base, {"row": row}, rng, resamples=100_000)
    slow = stats.permutation_test(
        (row - base,), np.mean, permutation_type="samples", n_resamples=2**8 if seeds == 8 else 100_000, random_state=7
    ).pvalue
    print(f"{seeds} seeds: here {found.p:.5f}, scipy {slow:.5f}")
    assert found.p == pytest.approx(slow, abs=1e-9 if seeds == 8 else 0.005)


def test_rows_that_are_the_same_differ_by_nothing():
    (found,) = compare([0.5, 3.0, 1.0], {"same": [0.5, 3.0, 1.0]}, np.random.default_rng(0))  # no shares of 1
    assert (found.difference.low, found.difference.high, found.p) == (0.0, 0.0, 1.0)
    assert not found.decided


def test_the_same_generator_gives_the_same_interval():
    values = np.arange(16.0)
    assert mean_interval(values, np.random.default_rng(3)) == mean_interval(values, np.random.default_rng(3))


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_values_that_tell_nothing_are_refused(values):
    with pytest.raises(PackForcingError, match="expected a finite number for each of 2 seeds"):
        mean_interval(values, np.random.default_rng(0))


def test_other_seeds_than_the_baselines_are_refused():
    with pytest.raises(PackForcingError, match="row has 2 seeds, the baseline 3"):
        compare([1.0, 2.0, 3.0], {"row": [1.0, 2.0]}, np.random.default_rng(0))


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0.0, 0.109), (32, 0.891, 1.0), (5, 0.053, 0.328)])
def test_of_yes_and_no_the_interval_is_exact(hits: int, low: float, high: float):
    """Clopper and Pearson's of 32; the bootstrap has [0, 0] and [1, 1] for the first two."""
    values = np.array([1.0] * hits + [0.0] * (32 - hits))
    for found in (mean_interval(values, np.random.default_rng(0), resamples=2000), share_interval(hits, 32)):
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)
        assert found.seeds == 32


def test_of_no_draws_nothing_is_known():
    found = share_interval(0, 0)
    assert (found.low, found.high, found.seeds) == (0.0, 1.0, 0)


def test_differences_that_are_all_alike_have_an_interval_of_some_width():
    base = np.linspace(0, 1, 16)
    [same] = compare(base, {"same": base}, np.random.default_rng(0), resamples=2000)
    print(f"16 differences of 0: {same.difference}")
    # A difference of 1 in one of five draws is missed by 16 draws in 2.8 percent of all cases.
    assert (same.difference.low, same.difference.high) == pytest.approx((-0.206, 0.206), abs=1e-3)
    assert not same.decided
    [all_better] = compare(np.zeros(16), {"better": np.ones(16)}, np.random.default_rng(0), resamples=2000)
    assert 0.5 < all_better.difference.low < 0.65
    assert all_better.difference.high == 1
    assert all_better.decided


def test_within_kinds_how_the_kinds_differ_is_no_chance():
    """Two kinds that differ by 10 and spread by 1: only the spread is left in the interval."""
    rng = np.random.default_rng(8)
    kinds = ["a", "b"] * 16
    values = np.where(np.array(kinds) == "a", 0.0, 10.0) + rng.normal(0, 1, 32)
    [together] = mean_intervals(values[:, None], np.random.default_rng(0), resamples=4000)
    [within] = mean_intervals(values[:, None], np.random.default_rng(0), resamples=4000, strata=kinds)
    width = 2 * stats.t.ppf(0.975, 30) * np.mean([values[::2].std(ddof=1), values[1::2].std(ddof=1)]) / np.sqrt(32)
    print(f"pooled {together}, within kinds {within}, by t {width:.2f} wide")
    assert within.mean == together.mean
    assert within.high - within.low == pytest.approx(width, rel=0.08)
    assert together.high - together.low > 3 * width


def test_kinds_of_one_seed_each_are_pooled():
    values = np.arange(4.0)[:, None]
    alone = mean_intervals(values, np.random.default_rng(0), resamples=2000, strata=list("abcd"))
    assert alone == mean_intervals(values, np.random.default_rng(0), resamples=2000)
