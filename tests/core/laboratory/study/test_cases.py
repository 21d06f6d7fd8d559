"""Every seed has its prompt, and the worlds take turns."""

from __future__ import annotations

from collections import Counter

from packforcing_core.laboratory.evaluation.little_world.promise import parse_prompt
from packforcing_core.laboratory.study.cases import MEMORY_WORLDS, WORLDS, case_of


def test_the_worlds_take_turns():
    assert Counter(case_of(seed).world for seed in range(16)) == dict.fromkeys(WORLDS, 4)
    assert set(MEMORY_WORLDS) < set(WORLDS)


def test_a_prompt_is_of_its_world():
    for seed in range(40):
        case = case_of(seed)
        promise = parse_prompt(case.prompt)
        assert promise.kind == WORLDS[case.world][0]
        assert len(promise.things) == {"one": 1, "two": 2, "return": 1, "pan": 0}[case.world]
        assert all((thing.colour is None) == (case.world == "return") for thing in promise.things)


def test_a_seed_is_a_case_for_ever():
    assert case_of(5) == case_of(5)
    assert len({case_of(seed).prompt for seed in range(40)}) > 20
