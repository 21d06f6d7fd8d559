"""Whatever is given to the public API is taken, or refused in one clear error before any work; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from packforcing_core import api
from packforcing_core.cache.config import POLICIES, Window
from packforcing_core.checkpoint.families import FAMILIES

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 16, 64, 480, 832, 2**64 - 1, 2**64, True, math.nan])
ANYTHING = NUMBERS | st.text(max_size=20) | st.none() | st.binary(max_size=4) | st.lists(NUMBERS, max_size=4)
KNOBS = sorted({knob.name for policy in POLICIES.values() for knob in policy.knobs()})
GIVEN = {
    "prompt": st.text(alphabet="[]()0123456789sm:. a{}\"'\u3010", max_size=30),
    "policy": st.sampled_from([*POLICIES, "none", ""]) | st.just(Window()),
    "knobs": st.dictionaries(st.sampled_from([*KNOBS, "none"]), NUMBERS | st.text(max_size=8), max_size=3),
    "preset": st.sampled_from([*FAMILIES, "none", ""]),
    "timesteps": st.lists(NUMBERS, max_size=5).map(tuple),
}


def made_or_refused(make: Callable[[], Any]) -> tuple[Any, str]:
    """What is made, or what is said; any other error than the one of ours is raised."""
    try:
        return make(), ""
    except api.PackForcingError as error:
        return None, str(error)


def settings_given():
    """Some fields of `Settings`, with what they are meant for or anything else."""
    of = {field.name: GIVEN.get(field.name, NUMBERS) | ANYTHING for field in fields(api.Settings)}
    return st.fixed_dictionaries({}, optional=of)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(settings_given())
@example({"prompt": 5})
@example({"policy": 5})
@example({"policy": "window", "knobs": {"window_frames": "x"}})
@example({"knobs": "ab"})
@example({"policy": "window", "knobs": {5: 5}})
@example({"timesteps": 5})
@example({"preset": ["self-forcing"]})
def test_any_settings_make_a_recipe_or_are_refused(given_settings):
    def make():
        chosen = api.Settings(**given_settings)
        recipe = chosen.recipe()
        return recipe, chosen.moments(recipe)

    made, said = made_or_refused(make)
    if made is None:
        assert 10 < len(said) < 600
        return
    recipe, moments = made
    assert moments[0].block == 0
    assert recipe.geometry.blocks >= 1
    assert 0 <= recipe.seed < 2**64


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(max_size=40) | st.sampled_from(["film.mp4", "../film.mp4", "a/b.mp4", "film.MP4", ".mp4"]),
    mode=st.sampled_from(["resume", "new", "extend", "retake"]) | ANYTHING,
    segment=NUMBERS | ANYTHING,
    moment=NUMBERS | ANYTHING,
)
def test_any_place_is_taken_or_refused_and_nothing_is_written(tmp_path, name, mode, segment, moment):
    place, said = made_or_refused(
        lambda: api.Place(tmp_path / name, blocks_per_segment=segment, mode=mode, retake_from=moment)
    )
    assert len(said) < 600
    if place is not None:
        assert place.path.suffix.lower() == ".mp4"
        assert place.mode in ("resume", "new")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60)
@given(st.sampled_from(["h264", "h265", "av1", "lossless"]) | ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_any_format_is_taken_or_refused(codec, quality, fps, zoom):
    made, said = made_or_refused(lambda: api.VideoFormat(codec, quality, fps, zoom))
    assert len(said) < 600
    if made is not None:
        assert made.rate > 0
        assert made.stored_size(64, 32)


@pytest.mark.parametrize("path", ["", ".", "a\0.mp4", "x" * 300 + ".mp4", "film"])
def test_a_path_that_no_video_can_have_is_refused(path):
    with pytest.raises(api.PackForcingError):
        api.Place(Path(path))
