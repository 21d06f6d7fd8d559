"""The manifest: what is read back is what was written, and nothing else is believed."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packforcing_core.folder.files import FolderError
from packforcing_core.folder.manifest import LARGEST_BYTES, NAME, Manifest, Take, difference

PROMPT, OTHER = "0" * 32, "a" * 32
WANTED = Manifest({"width": 64, "sigmas": [1.0, 0.5], "policy": "window"}, 10, (Take(0, 7, PROMPT),), {"torch": "2"})

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


def written(folder: Path, content) -> Path:
    (folder / NAME).write_text(json.dumps(content), encoding="utf-8")
    return folder


def as_json(manifest: Manifest, folder: Path) -> dict:
    manifest.write(folder)
    return json.loads((folder / NAME).read_text(encoding="utf-8"))


def test_what_is_read_is_what_was_written(tmp_path):
    manifest = replace(WANTED, takes=(*WANTED.takes, Take(4, 2**64 - 1, OTHER)))
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize(
    ("first_blocks", "takes", "pieces"),
    [
        ([0], [0] * 10, [(0, 10)]),
        ([0, 4], [0] * 4 + [1] * 6, [(0, 4), (1, 10)]),
        ([0, 6, 3], [0] * 3 + [2] * 7, [(0, 3), (2, 10)]),
        ([0, 3, 6], [0] * 3 + [1] * 3 + [2] * 4, [(0, 3), (1, 6), (2, 10)]),
        ([0, 0], [1] * 10, [(1, 10)]),
        ([0, 5, 5], [0] * 5 + [2] * 5, [(0, 5), (2, 10)]),
    ],
)
def test_a_later_take_replaces_the_blocks_from_its_first_one_on(first_blocks, takes, pieces):
    manifest = replace(WANTED, takes=tuple(Take(first, 0, PROMPT) for first in first_blocks))
    assert [manifest.take_of(block) for block in range(10)] == takes
    assert manifest.pieces() == pieces


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 12))
def test_pieces_cover_every_block_once_with_its_take(later, blocks):
    manifest = replace(WANTED, blocks=blocks, takes=tuple(Take(first, 0, PROMPT) for first in (0, *later)))
    covered = []
    for take, end in manifest.pieces():
        assert end > len(covered)
        covered += [take] * (end - len(covered))
    assert covered == [manifest.take_of(block) for block in range(blocks)]


def test_the_difference_names_what_differs_and_versions_do_not_count():
    other = replace(WANTED, settings={**WANTED.settings, "width": 96}, blocks=11, versions={})
    assert difference(WANTED, WANTED) == []
    assert difference(WANTED, other) == ["blocks: the render has 10, now 11", "width: the render has 64, now 96"]


def test_a_difference_is_told_in_the_users_words():
    settings = {"fps": 16.0, "frames_per_block": 3, "model": PROMPT, "LoRAs": OTHER, "sigmas": [1.0, 1 / 3]}
    settings["attention"] = PROMPT
    one = Manifest(settings, 10, (Take(0, 7, PROMPT),))
    changes = {"model": OTHER, "LoRAs": None, "sigmas": [1.0], "attention": OTHER}
    other = replace(one, settings={**settings, **changes}, blocks=11)
    told = difference(one, other)
    print("\n".join(told))
    assert told == [
        "LoRAs: the render has one, now there is none",
        "attention: not the one that the render was started with (another node, or other settings of it)",
        "model: not the one that the render was started with (other weights)",
        "seconds: the render has 7.31, now 8.06",
        "sigmas: the render has 1, 0.333333, now 1",
    ]
    assert PROMPT not in "".join(told)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 2}, "its schema is 2, expected 1"),
        ({"schema": True}, "its schema is True"),
        ({"more": 1}, "it has other keys"),
        ({"blocks": 0}, "its number of blocks is 0"),
        ({"blocks": 10**9}, "its number of blocks"),
        ({"blocks": 2.0}, "its number of blocks"),
        ({"settings": {"width": {"a": 1}}}, "its settings"),
        ({"settings": {"width": math.nan}}, "its settings"),
        ({"settings": []}, "its settings"),
        ({"versions": {"torch": 2}}, "its versions"),
        ({"identity": "x"}, "its identity"),
        ({"blocks": 11}, "it was changed"),
        ({"seal": None}, "it was changed"),
        ({"takes": [{"first_block": 0, "seed": 0, "prompt": PROMPT, "words": 1}]}, "its takes"),
        ({"takes": []}, "its takes"),
        ({"takes": [{"first_block": 1, "seed": 0, "prompt": PROMPT, "words": ""}]}, "its first take does not begin"),
        ({"takes": [{"first_block": 0, "seed": -1, "prompt": PROMPT, "words": ""}]}, "its takes"),
        ({"takes": [{"first_block": 0, "seed": 0, "prompt": "../../../etc/passwd", "words": ""}]}, "its takes"),
        ({"takes": [{"first_block": 0, "seed": 0, "prompt": PROMPT + "\n", "words": ""}]}, "its takes"),
        ({"takes": [{"first_block": 0, "seed": 0, "prompt": PROMPT, "words": "", "path": "../x"}]}, "its takes"),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_the_reason(tmp_path, change, problem):
    with pytest.raises(FolderError, match=problem):
        Manifest.read(written(tmp_path, {**as_json(WANTED, tmp_path), **change}))


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' * 10, b"null", b"1" * (LARGEST_BYTES + 1)]
)
def test_a_file_that_is_no_json_or_too_long_is_refused(tmp_path, raw):
    (tmp_path / NAME).write_bytes(raw)
    with pytest.raises(FolderError):
        Manifest.read(tmp_path)


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(FolderError, match="cannot be read"):
        Manifest.read(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(content=plain)
def test_any_json_is_refused_or_read(tmp_path, content):
    try:
        Manifest.read(written(tmp_path, content))
    except FolderError:
        return


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> dict:
    return as_json(WANTED, tmp_path_factory.mktemp("wanted"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_any_change_of_a_value_is_refused_or_harmless(tmp_path, wanted, data):
    """Whatever is believed can be used: takes and pieces are there for every block, prompts are names of files."""
    content = copy.deepcopy(wanted)
    key = data.draw(st.sampled_from(sorted(content)))
    if key == "takes" and data.draw(st.booleans()):
        content["takes"][0][data.draw(st.sampled_from(["first_block", "seed", "prompt"]))] = data.draw(plain)
    else:
        content[key] = data.draw(plain)
    try:
        manifest = Manifest.read(written(tmp_path, content))
    except FolderError:
        return
    assert manifest.take_of(manifest.blocks - 1) == 0
    assert manifest.pieces() == [(0, manifest.blocks)]
    assert all(take.prompt.isalnum() for take in manifest.takes)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
