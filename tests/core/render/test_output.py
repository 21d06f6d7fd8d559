"""Names of finished videos: refused before any work, or taken at the end without taking another's."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.render.output import LONGEST_NAME, checked_output, publish


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 241 + ".mp4", "245 bytes"),
        ("\u00e4" * 120 + ".mp4", "244 bytes"),
        ("a\0b.mp4", "without NUL"),
        ("a\ud800b.mp4", "which is not a valid path"),
        ("film.avi", "ends in .mp4"),
        ("", "ends in .mp4"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name, message):
    with pytest.raises(PackForcingError, match=message):
        checked_output(Path(f"{tmp_path}/{name}"))
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_can_be_written(tmp_path):
    path = checked_output(tmp_path / ("a" * (LONGEST_NAME - 4) + ".mp4"))
    path.write_bytes(b"")


def no_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, "as exFAT says it")


@pytest.mark.parametrize("hard_links", [True, False])
def test_many_that_want_one_name_at_once_all_get_one(tmp_path, hard_links, monkeypatch):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    made = [tmp_path / f"made {number}" for number in range(16)]
    for number, path in enumerate(made):
        path.write_text(str(number), encoding="utf-8")
    (tmp_path / "film.mp4").write_text("there before", encoding="utf-8")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda path: publish(path, tmp_path / "film.mp4"), made))
    assert [path.read_text(encoding="utf-8") for path in got] == [str(number) for number in range(16)]
    assert sorted(path.name for path in got) == sorted(f"film-{number}.mp4" for number in range(2, 18))
    assert (tmp_path / "film.mp4").read_text(encoding="utf-8") == "there before"
    assert not any(path.exists() for path in made)
