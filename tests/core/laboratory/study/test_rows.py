"""The rows are what they say, and the miniature can run each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry
from packforcing_core.laboratory.study.rows import (
    GROUPS,
    POLICIES,
    QUICK,
    TRAINED,
    base_row,
    chosen_rows,
    left_out,
    study_rows,
)
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.sampler.denoising import Denoising

FAMILY = FAMILIES["miniature"]
GEOMETRY = VideoGeometry.from_seconds(120.0, width=128, height=64, fps=16, frames_per_block=FAMILY.frames_per_block)


@pytest.mark.parametrize("trained", [False, True])
def test_every_row_is_a_plan_of_its_own_for_the_miniature(trained: bool):
    rows = study_rows(trained)
    plans = [Recipe(GEOMETRY, row.policy, Denoising.of_family(FAMILY), 0).partitions for row in rows]
    assert len({row.name for row in rows}) == len(rows)
    assert len({(repr(plan), row.branches, row.oracle) for plan, row in zip(plans, rows, strict=True)}) == len(rows)
    assert {row.group for row in rows} <= set(GROUPS)
    for row, plan in zip(rows, plans, strict=True):
        assert (row.branches is None) == (plan.bank is None), row.name
        assert row.name == "no mid" or (plan.bank is None) == (row.branches is None), row.name


def test_an_ablation_changes_one_thing_about_the_base():
    base = base_row(True)
    changed = {}
    for row in study_rows(True):
        if row.group == POLICIES or row.name == "oracle whole":
            continue
        knobs, own = vars(base.policy), vars(row.policy)
        parts = ["branches"] if row.branches != base.branches else []
        changed[row.name] = [name for name in own if own[name] != knobs[name]] + parts
    assert changed["sink 0"] == ["sink_frames"]
    assert changed["FIFO"] == ["selector"]
    assert changed["top 16"] == ["top_k_blocks"]
    assert changed["running mean"] == ["selector"]
    assert changed["aligned"] == ["alignment"]
    assert changed["HR alone"] == ["branches"]
    assert {name for name, own in changed.items() if not own} == {"oracle selected"}


def test_without_trained_weights_no_row_asks_for_them():
    assert not any(row.needs_training for row in study_rows(False))
    assert {"trained", "HR alone", "LR alone"} <= set(left_out(False))
    assert left_out(True) == ()
    assert base_row(False).branches == "low_res"


def test_the_base_is_not_repeated():
    # The miniature selects 6 blocks of span 1; zero-shot takes 16, and what span fits.
    names = [{row.name for row in study_rows(trained)} for trained in (True, False)]
    assert "span 1" not in names[0]
    assert names[0] >= {"span auto", "top 4", "top 16"}
    assert names[1].isdisjoint({"span auto", "top 16"})
    assert names[1] >= {"span 1", "top 4"}


def test_rows_are_chosen_by_name():
    rows = study_rows(True)
    assert [row.name for row in chosen_rows(rows, ["trained", "full"])] == ["full", "trained"]
    assert set(QUICK) <= {row.name for row in rows}
    with pytest.raises(PackForcingError, match=r"no row 'fulll' .* full, window"):
        chosen_rows(rows, ["fulll"])


def test_a_row_says_all_that_it_is():
    told = replace(TRAINED, name="x").as_dict()
    assert told["knobs"]["mid_span"] == 1
    assert told["branches"] == "both"
    assert told["policy"] == "packforcing"
