"""The tables say of planted results what was planted."""

from __future__ import annotations

import pytest

pytest.importorskip("scipy")

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.study.cases import MEMORY_WORLDS
from packforcing_core.laboratory.study.recall import AWAY
from packforcing_core.laboratory.study.tables import (
    CLAIMS,
    FOUND,
    MEASURES,
    MEMORY_CLAIMS,
    Tables,
    build_recall_tables,
    build_tables,
    whole_seeds,
)
from tests.core.laboratory.study.planted import planted, planted_row

MOMENTS = (5.0, 15.0)


def planted_tables(seeds: int = 16) -> Tables:
    results = {
        "base": planted_row(seeds, [0.9, 0.5]),
        "better": planted_row(seeds, [0.9, 0.7]),
        "same": planted_row(seeds, [0.2, 0.5]),
    }
    for at, found in enumerate(results["better"]):
        found["windows"][1]["right"] += 0.02 * (1 if at % 2 else -1)  # Better by 0.2 in the mean, not by the same.
    return build_tables(results, "base", MOMENTS)


def test_means_are_those_that_were_planted():
    tables = planted_tables()
    for measure in MEASURES:
        for name, means in (("base", (0.9, 0.5)), ("better", (0.9, 0.7)), ("same", (0.2, 0.5))):
            found = tables.windows[measure.key][name]
            assert [interval.mean for interval in found] == pytest.approx(means)
            for interval in found:
                assert interval.low < interval.mean < interval.high
                # The values lie 0.1 (0.12 at most) from their mean, so 16 of them have a standard error of 0.026.
                assert 0.08 < interval.high - interval.low < 0.14


def test_only_the_row_that_is_better_is_found_so():
    claims = planted_tables().claims
    assert list(claims) == list(CLAIMS)
    better, same = claims["right"]
    print(f"better {better.difference}, p {better.p:.2g}; same {same.difference}, p {same.p:.2g}")
    assert (better.name, same.name) == ("better", "same")
    assert better.difference.mean == pytest.approx(0.2)
    assert better.decided
    assert same.difference.mean == pytest.approx(0, abs=1e-12)
    assert same.difference.low < 0 < same.difference.high  # 16 differences of nothing do not prove that there is none.
    assert not same.decided
    assert same.p == 1


def test_p_is_corrected_for_all_that_is_compared():
    claims = planted_tables().claims
    # All 2^16 flips of sign are tried, and two of them are as large. Of the eight comparisons four have this p: the
    # first is multiplied by eight and no later one may come out below it.
    assert claims["right"][0].p == pytest.approx(8 * 2 / 2**16)


def test_fewer_rows_leave_more_room():
    results = {"base": planted_row(16, [0.5]), "other": planted_row(16, [0.6])}
    for at, found in enumerate(results["other"]):
        found["windows"][0]["right"] += 0.1 * ((at % 5) - 2)
    alone = build_tables(results, "base", (5.0,)).claims["right"][0].difference
    crowd = {f"row {i}": results["other"] for i in range(9)}
    many = build_tables({**results, **crowd}, "base", (5.0,)).claims["right"][0].difference
    print(f"alone {alone}, one of ten {many}")
    assert many.low < alone.low
    assert many.high > alone.high


def test_memory_is_asked_of_the_worlds_that_need_it():
    results = {"base": planted_row(16, [0.5]), "other": planted_row(16, [0.5])}
    for found in results["other"]:
        found["windows"][0]["right"] += 0.3 if found["world"] in MEMORY_WORLDS else -0.3
    tables = build_tables(results, "base", (5.0,))
    assert tables.memory["right"]["other"].mean == pytest.approx(0.8)
    assert tables.memory["right"]["other"].seeds == len(tables.memory_seeds) == 8
    assert list(tables.memory_claims) == list(MEMORY_CLAIMS)
    assert tables.memory_claims["right"][0].difference.mean == pytest.approx(0.3)
    assert tables.claims["right"][0].difference.mean == pytest.approx(0.0)


def test_one_seed_that_needs_memory_is_none():
    tables = build_tables({"base": planted_row(3, [0.5]), "other": planted_row(3, [0.5])}, "base", (5.0,))
    assert tables.memory_seeds == (2,)
    assert not tables.memory
    assert not tables.memory_claims


def test_seeds_that_a_row_lacks_are_left_out_of_all():
    rows = {"a": {seed: planted(seed, [0.5]) for seed in range(4)}, "b": {s: planted(s, [0.5]) for s in (3, 1, 2)}}
    whole = whole_seeds(rows)
    assert [[found["seed"] for found in row] for row in whole.values()] == [[1, 2, 3], [1, 2, 3]]
    del rows["b"][1], rows["b"][2]
    with pytest.raises(PackForcingError, match="1 of the seeds"):
        whole_seeds(rows)


def test_the_reference_has_to_be_a_row():
    with pytest.raises(PackForcingError, match=r"'none' is no row of the study; expected one of \['a'\]"):
        build_tables({"a": planted_row(4, [0.5])}, "none", (5.0,))


def test_planned_comparisons_are_corrected_for_each_other_alone():
    rows = {name: planted_row(16, [0.5]) for name in ("trained", "window", "FIFO", *map(str, range(20)))}
    for name in ("window", "FIFO", "0"):
        for at, found in enumerate(rows[name]):
            found["windows"][0]["right"] += 0.02 * ((at % 5) - 1)
    claims = {found.name: found for found in build_tables(rows, "trained", (5.0,)).claims["right"]}
    planned, other = claims["window"], claims["0"]
    print(f"one of 2 planned rows: p {planned.p:.3g}, {planned.difference}; one of 20 others: p {other.p:.3g}")
    assert planned.p < other.p
    assert planned.difference.high - planned.difference.low < other.difference.high - other.difference.low


def test_a_row_that_selects_has_a_hit_rate_and_another_has_none():
    answers = [{"seed": seed, "recall": 1.0, "back": 1.0} for seed in range(4)]
    selects = [{**found, "found": 0.5 + 0.1 * found["seed"]} for found in answers]
    found = build_recall_tables({away: {"trained": selects, "window": answers} for away in AWAY}, "trained")
    assert found.measures["found"]["late"]["trained"].mean == pytest.approx(0.65)
    assert FOUND.cell(found.measures["found"]["late"]["window"]) == "none"
