"""Statistics over few seeds: confidence intervals of means, and paired comparisons with correction for multiple
testing.

Values of the same seed under different policies are paired: a seed that is easy for one policy is easy for all, so only
the differences matter. The intervals are bootstrap percentiles over seeds. With few seeds such intervals are too narrow
(16 seeds: a coverage of 92% instead of 95%), so the percentiles are expanded by the ratio of Student's t to the normal
distribution (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015, section 5.3). For K comparisons each
interval has the level 1 - (1 - level) / K, so that all of them together hold at `level` (Bonferroni). The p values of
the sign-flip test are corrected by Holm's method, which rejects at least as much.

A bootstrap of equal values has zero width, which ignores the values that were not observed. So the interval of values
that are 0 or 1 is exact (Clopper and Pearson, 1934). For equal differences of values in 0..1 the interval allows for
outcomes that did not occur in as many draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from ...errors import PackForcingError
from .scientific import library

Name = TypeVar("Name")

RESAMPLES = 100_000
CHUNK = 20_000  # resamples per batch; limits the memory
EXACT_SEEDS = 16  # up to this number of seeds all 2^n sign flips are enumerated


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its confidence interval at `level`."""

    mean: float
    low: float
    high: float
    level: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Comparison:
    """The mean paired difference of a row from the baseline. The interval and `p` are corrected for all comparisons
    made.
    """

    name: str
    difference: Interval
    p: float

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return self.difference.low > 0 or self.difference.high < 0


def mean_interval(
    values: Sequence[float] | np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Returns the mean of one value per seed [S], with its interval. Raises PackForcingError for fewer than 2 values or
    for values that are not finite.
    """
    return mean_intervals(_checked("the values", values)[:, None], rng, level, resamples)[0]


def mean_intervals(
    columns: np.ndarray,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    strata: Sequence[str] | None = None,
) -> list[Interval]:
    """Returns the interval of each column of values [S, K]. They are not corrected for multiple testing.

    `strata` gives the kind of each seed. Resamples then keep the number of seeds of each kind (stratified bootstrap):
    the kinds were chosen and not drawn at random, so the differences between them are not sampling error.
    """
    exact = [_share_bounds if _yes_or_no(column) else None for column in columns.T]
    return _intervals(columns, rng, level, level, resamples, exact, strata)


def compare(
    baseline: Sequence[float] | np.ndarray,
    others: Mapping[Name, Sequence[float] | np.ndarray],
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    strata: Sequence[str] | None = None,
) -> list[Comparison]:
    """Compares each row of `others` with the baseline. All are values [S] of the same seeds in the same order. Returns
    the comparisons in the order of `others`; `strata` as in `mean_intervals`.

    All comparisons that support one claim belong in one call, because the correction is for those of the call. Raises
    PackForcingError if a row has another number of seeds than the baseline.
    """
    if not others:
        return []
    base = _checked("the baseline", baseline)
    rows = [_checked(str(name), values) for name, values in others.items()]
    for name, row in zip(others, rows, strict=True):
        if len(row) != len(base):
            raise PackForcingError(
                f"{name} has {len(row)} seeds, the baseline {len(base)}; expected the same seeds in the same order: "
                "render the missing ones, or leave them out of all rows."
            )
    differences = np.stack(rows, 1) - base[:, None]
    each = 1 - (1 - level) / len(rows)
    shares = [bool(((row >= 0) & (row <= 1) & (base >= 0) & (base <= 1)).all()) for row in rows]
    alike = [
        _alike_bounds if share and np.ptp(row - base) == 0 else None for share, row in zip(shares, rows, strict=True)
    ]
    intervals = _intervals(differences, rng, each, level, resamples, alike, strata)
    p = _holm(_sign_flips(differences, rng, resamples))
    found = zip(others, intervals, p, strict=True)
    return [Comparison(str(name), interval, chance) for name, interval, chance in found]


def _checked(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise PackForcingError(f"Got {name} as {found.tolist()}; expected a finite number for each of 2 seeds or more.")
    return found


def _yes_or_no(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _intervals(
    columns: np.ndarray,
    rng: np.random.Generator,
    each: float,
    level: float,
    resamples: int,
    exact: Sequence[Callable[[np.ndarray, float], tuple[float, float]] | None],
    strata: Sequence[str] | None = None,
) -> list[Interval]:
    """Returns the intervals of the means of columns [S, K], computed at level `each` and labelled with `level`. `exact`
    [K] has a function for each column whose bounds are not the bootstrap's, else None.
    """
    seeds, groups = len(columns), _groups(len(columns), strata)
    tail = _expanded_tail(each, seeds, len(groups))
    means = np.concatenate([weights @ columns for weights in _resampled(groups, resamples, rng)])
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    found = []
    for column, least, most, bounds in zip(columns.T, low, high, exact, strict=True):
        if bounds is not None:
            least, most = bounds(column, each)
        found.append(Interval(float(column.mean()), float(least), float(most), level, seeds))
    return found


def _share_bounds(column: np.ndarray, level: float) -> tuple[float, float]:
    return exact_bounds(int(column.sum()), len(column), level)


def _alike_bounds(column: np.ndarray, level: float) -> tuple[float, float]:
    """Returns the bounds for differences of fractions that are all equal: an outcome that did not occur in as many
    draws may be the opposite one.
    """
    mean, unseen = float(column.mean()), 1 - ((1 - level) / 2) ** (1 / len(column))
    return mean - unseen * (1 + mean), mean + unseen * (1 - mean)


def exact_bounds(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the Clopper-Pearson interval of a proportion of which `hits` of `count` were observed; 0..1 if `count` is
    0.
    """
    if count == 0:
        return 0.0, 1.0
    stats = library("scipy.stats", "scipy", "Statistics over seeds")
    bounds = stats.binomtest(hits, count).proportion_ci(level, "exact")
    return float(bounds.low), float(bounds.high)


def share_interval(hits: int, count: int, level: float = 0.95) -> Interval:
    """Returns a proportion with its exact interval; 0 [0, 1] if `count` is 0."""
    return Interval(hits / count if count else 0.0, *exact_bounds(hits, count, level), level, count)


def _groups(seeds: int, strata: Sequence[str] | None) -> list[np.ndarray]:
    """Returns the seeds' indices by kind; a single group without strata, or if every kind has one seed."""
    kinds = sorted(set(strata or ()))
    if strata is None or len(kinds) == seeds or not kinds:
        return [np.arange(seeds)]
    return [np.flatnonzero([own == kind for own in strata]) for kind in kinds]


def _expanded_tail(level: float, seeds: int, groups: int = 1) -> float:
    """Returns the fraction of resamples beyond each end: the tail of a normal distribution beyond sqrt(n / (n - g)) t,
    where t has n - g degrees of freedom for n seeds in g groups.
    """
    stats = library("scipy.stats", "scipy", "Statistics over seeds")
    free = seeds - groups
    t = stats.t.ppf((1 + level) / 2, free)
    return float(stats.norm.sf(np.sqrt(seeds / free) * t))


def _resampled(groups: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields weights of the seeds [up to CHUNK, S]: how often each was drawn within its group, divided by the number of
    seeds.
    """
    seeds = sum(map(len, groups))
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        weights = np.empty((count, seeds))
        for group in groups:
            weights[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=count) / seeds
        yield weights


def _sign_flips(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> list[float]:
    """Returns the two-sided p value of each column's mean [S, K], under the null hypothesis that each seed's sign is
    random.
    """
    seeds = len(differences)
    observed = np.abs(differences.sum(0)) * (1 - 1e-9)  # equal sums may differ in their last bit
    if seeds <= EXACT_SEEDS:
        return (np.abs(_all_signs(seeds) @ differences) >= observed).mean(0).tolist()
    beyond = np.zeros(differences.shape[1])
    for start in range(0, resamples, CHUNK):
        signs = rng.choice([-1.0, 1.0], (min(CHUNK, resamples - start), seeds))
        beyond += (np.abs(signs @ differences) >= observed).sum(0)
    return ((beyond + 1) / (resamples + 1)).tolist()


@cache
def _all_signs(seeds: int) -> np.ndarray:
    return 1.0 - 2.0 * ((np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1)


def _holm(p: Sequence[float]) -> list[float]:
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected
