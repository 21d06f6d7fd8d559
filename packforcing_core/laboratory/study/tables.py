"""The study's results as numbers: means with their intervals, and each row against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ...errors import PackForcingError
from ..evaluation.statistics import Comparison, Interval, compare, mean_interval, mean_intervals, share_interval
from .cases import MEMORY_WORLDS
from .recall import AWAY
from .rows import PLANNED

RESAMPLES = 20_000
RESAMPLING_SEED = 2603
LEVEL = 0.95


@dataclass(frozen=True)
class Measure:
    """A number of a window. `share`: 0..1, shown in percent. `counted`: with how many draws it is of, where rows differ
    in that.
    """

    key: str
    title: str
    share: bool = True
    counted: bool = False

    def cell(self, interval: Interval) -> str:
        scale, form = (100, ".0f") if self.share else (1, ".2f")
        if not interval.seeds:
            return "none"
        mean, low, high = (format(scale * value, form) for value in (interval.mean, interval.low, interval.high))
        return f"{mean} [{low}, {high}]" + (f" of {interval.seeds}" if self.counted else "")


MEASURES = (
    Measure("right", "everything right"),
    Measure("colours_right", "right colours"),
    Measure("count_right", "right count"),
    Measure("identity_kept", "identity kept"),
    Measure("moving", "moving (not frozen)"),
    Measure("jumps_per_minute", "jumps per minute", share=False),
    Measure("colour_drift", "colour drift (CIE76)", share=False),
    Measure("contrast_drift", "contrast drift"),
    Measure("flicker", "flicker (CIE76)", share=False),
)
CLAIMS = ("right", "identity_kept", "moving", "colour_drift")
"""What is compared, in the last window: all rows with all of these are corrected for together."""
MEMORY_CLAIMS = ("right", "identity_kept")
"""What is compared on the worlds that need recall, corrected for together, apart from CLAIMS."""

RIGHT_IF_BACK = Measure("right_if_back", "right, if back", counted=True)
FOUND = Measure("found", "layers that select it")
RECALL = (Measure("recall", "recalled"), Measure("back", "back at all"), RIGHT_IF_BACK, FOUND)
"""Of the answers to questions, for each of AWAY. The first is compared, all rows and both corrected for together. What
recalls nothing brings nothing back either: the second says when, the third, of those that came back alone, which. The
last is the selection's hit rate: the share of layers that choose a block that shows what is asked for.
"""

Results = Mapping[str, Sequence[dict]]
"""For each row's name the results of the same seeds in the same order."""


@dataclass(frozen=True)
class Tables:
    """`windows[measure][row]` are intervals, one for each of `moments`; `memory[measure][row]` the last moment's on
    the worlds that need recall (nothing for fewer than two seeds there). `seeds` and `memory_seeds` are those that all
    rows have."""

    reference: str
    seeds: tuple[int, ...]
    memory_seeds: tuple[int, ...]
    moments: tuple[float, ...]
    windows: Mapping[str, Mapping[str, Sequence[Interval]]]
    memory: Mapping[str, Mapping[str, Interval]]
    claims: Mapping[str, Sequence[Comparison]]
    memory_claims: Mapping[str, Sequence[Comparison]]

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class RecallTables:
    """`measures[measure][away][row]` are intervals over `seeds`; `claims[away]` compares what was recalled."""

    reference: str
    seeds: tuple[int, ...]
    measures: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    claims: Mapping[str, Sequence[Comparison]]

    def as_dict(self) -> dict:
        return asdict(self)


def whole_seeds(results: Mapping[str, Mapping[int, dict]]) -> dict[str, list[dict]]:
    """The results (row, seed) of the seeds that every row has, by seed; PackForcingError for fewer than two seeds."""
    shared = sorted(set.intersection(*(set(row) for row in results.values()))) if results else []
    if len(shared) < 2:
        raise PackForcingError(
            f"{len(shared)} of the seeds have been rendered for all rows; expected 2 or more. Run the study on."
        )
    return {name: [row[seed] for seed in shared] for name, row in results.items()}


def build_recall_tables(results: Mapping[str, Results], reference: str) -> RecallTables:
    """Of each of AWAY the answers of all rows to the same questions, in the same order."""
    _require_reference(results[next(iter(AWAY))], reference)
    seeds = {away: tuple(found["seed"] for found in rows[reference]) for away, rows in results.items()}
    measures: dict[str, dict[str, dict[str, Interval]]] = {measure.key: {} for measure in RECALL}
    for away, rows in results.items():
        for measure in RECALL[:2]:
            values = {name: _column(row, measure.key) for name, row in rows.items()}
            rng = np.random.default_rng(RESAMPLING_SEED)
            found = mean_intervals(np.stack(list(values.values()), axis=1), rng, LEVEL, RESAMPLES)
            measures[measure.key][away] = dict(zip(values, found, strict=True))
        measures[RIGHT_IF_BACK.key][away] = {name: _right_if_back(row) for name, row in rows.items()}
        measures[FOUND.key][away] = {name: _found(row) for name, row in rows.items()}
    recalled = {
        (away, name): _column(row, RECALL[0].key) for away, rows in results.items() for name, row in rows.items()
    }
    return RecallTables(reference, seeds[next(iter(AWAY))], measures, _compared(recalled, reference))


def _right_if_back(row: Sequence[dict]) -> Interval:
    back = [found["recall"] for found in row if found["back"]]
    return share_interval(int(sum(back)), len(back), LEVEL)


def _found(row: Sequence[dict]) -> Interval:
    """Of no draws for a row that selects nothing."""
    values = [found[FOUND.key] for found in row if FOUND.key in found]
    if len(values) < 2:
        return share_interval(0, 0, LEVEL)
    return mean_interval(values, np.random.default_rng(RESAMPLING_SEED), LEVEL, RESAMPLES)


def _column(row: Sequence[dict], key: str) -> np.ndarray:
    return np.array([found[key] for found in row])


def _require_reference(results: Results, reference: str) -> None:
    if reference not in results:
        raise PackForcingError(f"The reference {reference!r} is no row of the study; expected one of {list(results)}.")


def build_tables(results: Results, reference: str, moments: Sequence[float]) -> Tables:
    """The tables of results of the same seeds. Raises PackForcingError where the reference is no row of them."""
    _require_reference(results, reference)
    first = results[reference]
    memory = {name: [found for found in row if found["world"] in MEMORY_WORLDS] for name, row in results.items()}
    enough = len(memory[reference]) > 1
    last = {name: _intervals(row)[-1] for name, row in memory.items()} if enough else {}
    every = {name: _intervals(row) for name, row in results.items()}
    return Tables(
        reference,
        tuple(found["seed"] for found in first),
        tuple(found["seed"] for found in memory[reference]),
        tuple(moments),
        {m.key: {name: [window[m.key] for window in row] for name, row in every.items()} for m in MEASURES},
        {m.key: {name: window[m.key] for name, window in last.items()} for m in MEASURES if last},
        _claims(results, reference, CLAIMS),
        _claims(memory, reference, MEMORY_CLAIMS) if enough else {},
    )


def _intervals(row: Sequence[dict]) -> list[dict[str, Interval]]:
    """For each window, the interval of each measure."""
    keys = [measure.key for measure in MEASURES]
    values = np.array([[[window[key] for key in keys] for window in found["windows"]] for found in row])
    # The same resamples for all rows: equal videos get equal intervals.
    rng = np.random.default_rng(RESAMPLING_SEED)
    worlds = [found["world"] for found in row]
    flat = mean_intervals(values.reshape(len(row), -1), rng, LEVEL, RESAMPLES, worlds)
    return [dict(zip(keys, flat[at : at + len(keys)], strict=True)) for at in range(0, len(flat), len(keys))]


def _claims(results: Results, reference: str, keys: Sequence[str]) -> dict[str, list[Comparison]]:
    """Each row less the reference in the last window, for each of `keys`."""
    last = {
        (key, name): np.array([found["windows"][-1][key] for found in row])
        for name, row in results.items()
        for key in keys
    }
    return _compared(last, reference, [found["world"] for found in results[reference]])


def _compared(
    values: Mapping[tuple[str, str], np.ndarray], reference: str, strata: Sequence[str] | None = None
) -> dict[str, list[Comparison]]:
    """`values` of (key, row) over seeds [S]: for each key all rows less the reference. Those that were planned are
    corrected for each other, and all others for each other.
    """
    # `compare` has one baseline and corrects within one call: so all differences at once, against none at all.
    differences = {pair: own - values[pair[0], reference] for pair, own in values.items() if pair[1] != reference}
    nothing = np.zeros(len(next(iter(values.values()))))
    found: dict[tuple[str, str], Comparison] = {}
    for planned in (True, False):
        part = {pair: own for pair, own in differences.items() if (pair[1] in PLANNED) == planned}
        rng = np.random.default_rng(RESAMPLING_SEED)
        found |= dict(zip(part, compare(nothing, part, rng, LEVEL, RESAMPLES, strata), strict=True))
    claims: dict[str, list[Comparison]] = {key: [] for key, _ in values}
    for key, name in differences:
        claims[key].append(Comparison(name, found[key, name].difference, found[key, name].p))
    return claims
