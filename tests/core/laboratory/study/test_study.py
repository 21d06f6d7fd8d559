"""The whole study on a tiny random model: rows differ, the folder is taken up again, the tables stay the same."""

from __future__ import annotations

import argparse
import json
from functools import partial

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from packforcing_core.laboratory.cli import study as command
from packforcing_core.laboratory.study.answers import Answers
from packforcing_core.laboratory.study.cases import case_of
from packforcing_core.laboratory.study.folder import StudyFolder
from packforcing_core.laboratory.study.study import do_job, jobs_of, run_study
from packforcing_core.laboratory.study.subject import render_row
from tests.core.laboratory.study.small_study import ROWS, SECONDS, load_seldom, load_small

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def subject():
    return load_small()


def test_every_kind_of_row_renders_a_film_of_its_own(subject):
    films = {row.name: render_row(subject, row, case_of(0), SECONDS) for row in ROWS}
    assert {film.shape for film in films.values()} == {(45, 64, 128, 3)}
    first = {name: film[:13] for name, film in films.items()}
    assert all(np.array_equal(film, first["window"]) for film in first.values())
    different = len({film.tobytes() for film in films.values()})
    print(f"{different} different films of {len(films)}")
    assert different == len(films)
    assert np.array_equal(films["low"], render_row(subject, ROWS[1], case_of(0), SECONDS))


def options(folder, **changes) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    chosen = parser.parse_args(
        ["--output", str(folder), "--seeds", "2", "--questions", "2", "--seconds", str(SECONDS), "--workers", "1"]
    )
    return argparse.Namespace(**{**vars(chosen), **changes})


def tables(folder) -> dict:
    found = json.loads((folder / "tables.json").read_text())
    return {key: value for key, value in found.items() if key not in ("hours", "date")}


def test_a_study_that_lost_a_result_makes_that_one_again_and_has_the_same_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "study_rows", lambda trained: ROWS[:2])
    chosen = options(tmp_path, reference="low")
    assert command.study(chosen, load_small) == 0
    first = tables(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert len(times) == 12
    lost = tmp_path / "results" / "low" / "seed-1001.json"
    lost.unlink()
    capsys.readouterr()
    assert command.study(chosen, load_small) == 0
    said = capsys.readouterr().out
    assert "11 of 12 results exist already" in said
    assert "12 of 12 results, 0 min left (low, seed 1001)" in said
    assert tables(tmp_path) == first
    again = {path: path.stat().st_mtime_ns for path in times}
    assert {path for path in times if again[path] != times[path]} == {lost}
    assert {path.name for path in tmp_path.iterdir()} >= {"study.md", "tables.json", "curves.png", "sheet.png"}


def test_a_row_may_have_answers_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "study_rows", lambda trained: ROWS[:2])
    monkeypatch.setattr(command, "chosen_rows", lambda rows, names: tuple(row for row in ROWS if row.name in names))
    assert command.study(options(tmp_path, reference="low", only="questions", rows="low"), load_small) == 0
    assert "Without videos: low." in capsys.readouterr().out
    assert not (tmp_path / "curves.png").exists()
    assert command.study(options(tmp_path, reference="low", rows="low"), load_small) == 0
    assert command.study(options(tmp_path, reference="low", only="questions"), load_small) == 0
    said = capsys.readouterr().out
    assert "8 of 8 results" in said
    assert "Without videos: window." in said
    found = tables(tmp_path)
    assert list(found["windows"]["right"]) == ["low"]
    assert set(found["recall"]["measures"]["recall"]["late"]) == {"window", "low"}


def test_what_is_there_is_not_made_again(tmp_path, subject):
    folder, jobs = StudyFolder(tmp_path, {}), jobs_of(ROWS[:1], range(2), range(1))
    with folder.opened():
        for job in jobs:
            do_job(folder, SECONDS, Answers(subject), job)
        told = list(run_study(folder, jobs, partial(load_seldom), SECONDS, workers=1))
    assert [(progress.done, progress.total) for progress in told] == [(4, 4)]


def test_the_rows_are_told(capsys, tmp_path):
    assert command.study(options(tmp_path / "none", list=True), load_small) == 0
    said = capsys.readouterr().out
    assert "trained: {'name': 'trained', 'policy': 'packforcing'" in said
    assert not (tmp_path / "none").exists()
