"""What a study may claim from a few seeds: intervals of means, and paired comparisons corrected for their number.

The same seeds under every policy are pairs: a seed that is easy for one is easy for all, and only the differences are
of interest. The intervals are bootstrap percentiles over seeds; with few seeds such intervals are too narrow (16 seeds:
92 % where 95 % was meant), so the percentiles are taken as much farther out as Student's t lies beyond the normal
distribution (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015, section 5.3). For K comparisons each
interval has the level 1 - (1 - level) / K, so that all of them together hold at `level` (Bonferroni), and the p values
of the sign-flip test are corrected after Holm, which rejects at least as much.

A bootstrap of values that are all alike has no width, which says nothing of those that were not seen. So the interval
of values that are 0 or 1 is exact (Clopper and Pearson, 1934), and differences of values from 0 to 1 that are all alike
have one that holds what was not seen in as many draws.
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
CHUNK = 20_000  # resamples at a time; bounds the memory
EXACT_SEEDS = 16  # up to so many, all 2^n flips of sign are tried


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the interval that holds the true one at `level`."""

    mean: float
    low: float
    high: float
    level: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Comparison:
    """How much more than the baseline a row has, seed by seed. The interval and `p` allow for all comparisons made."""

    name: str
    difference: Interval
    p: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.difference.low > 0 or self.difference.high < 0


def mean_interval(
    values: Sequence[float] | np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """The mean of a value per seed [S], with its interval. Raises PackForcingError for fewer than 2 or for NaN."""
    return mean_intervals(_checked("the values", values)[:, None], rng, level, resamples)[0]


def mean_intervals(
    columns: np.ndarray,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    strata: Sequence[str] | None = None,
) -> list[Interval]:
    """The intervals of each column of values [S, K], each on its own: nothing is corrected for their number.

    With `strata`, the kind of each seed, resamples have as many seeds of each kind as there are: of a mean over kinds
    that were chosen, how the kinds differ is no chance.
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
    """Each row of `others` minus the baseline, values of the same seeds in the same order [S], in the rows' order;
    `strata` as in `mean_intervals`.

    All comparisons that a claim rests on belong into one call: they are what is corrected for. Raises PackForcingError
    where a row has other seeds than the baseline.
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
    """Intervals at the level `each` of the means of columns [S, K], labelled with `level`. `exact` [K] has the bounds
    of a column at a level where they are not the bootstrap's.
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
    """Of differences of shares that are all alike: what was not seen in as many draws may be the opposite."""
    mean, unseen = float(column.mean()), 1 - ((1 - level) / 2) ** (1 / len(column))
    return mean - unseen * (1 + mean), mean + unseen * (1 - mean)


def exact_bounds(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper's and Pearson's interval of a share of which `hits` of `count` were seen; 0..1 where there are none."""
    if count == 0:
        return 0.0, 1.0
    stats = library("scipy.stats", "scipy", "Statistics over seeds")
    bounds = stats.binomtest(hits, count).proportion_ci(level, "exact")
    return float(bounds.low), float(bounds.high)


def share_interval(hits: int, count: int, level: float = 0.95) -> Interval:
    """A share with its exact interval; of no draws it is 0 [0, 1]."""
    return Interval(hits / count if count else 0.0, *exact_bounds(hits, count, level), level, count)


def _groups(seeds: int, strata: Sequence[str] | None) -> list[np.ndarray]:
    """The indices of the seeds of each kind; all together where every kind has one."""
    kinds = sorted(set(strata or ()))
    if strata is None or len(kinds) == seeds or not kinds:
        return [np.arange(seeds)]
    return [np.flatnonzero([own == kind for own in strata]) for kind in kinds]


def _expanded_tail(level: float, seeds: int, groups: int = 1) -> float:
    """The share of resamples beyond each end: that of a normal distribution beyond sqrt(n / (n - g)) t, with as many
    degrees of freedom as seeds less the means of g groups.
    """
    stats = library("scipy.stats", "scipy", "Statistics over seeds")
    free = seeds - groups
    t = stats.t.ppf((1 + level) / 2, free)
    return float(stats.norm.sf(np.sqrt(seeds / free) * t))


def _resampled(groups: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights of the seeds [up to CHUNK, S]: how often each was drawn, within its group, as a share."""
    seeds = sum(map(len, groups))
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        weights = np.empty((count, seeds))
        for group in groups:
            weights[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=count) / seeds
        yield weights


def _sign_flips(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> list[float]:
    """The two-sided p value of the mean of each column [S, K], were each seed's sign a matter of chance."""
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
