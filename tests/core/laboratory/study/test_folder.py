"""A study's folder takes up what is there, and only what belongs to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.cache.config import Window
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.study.cases import case_of
from packforcing_core.laboratory.study.folder import Job, StudyFolder
from packforcing_core.laboratory.study.recall import Question
from packforcing_core.laboratory.study.rows import OTHERS, study_rows
from packforcing_core.laboratory.study.study import jobs_of
from packforcing_core.laboratory.study.subject import load_miniature
from packforcing_core.miniature import load as miniature

SETTINGS = {"weights": "a", "seconds": 15.0}
QUESTION = Question(0, "late")


def test_what_was_written_is_not_missing(tmp_path):
    folder, jobs = StudyFolder(tmp_path, SETTINGS), jobs_of(OTHERS[:2], range(2))
    with folder.opened():
        folder.write(jobs[1], {"windows": [1]})
    with StudyFolder(tmp_path, SETTINGS).opened():
        assert folder.missing(jobs) == [jobs[0], *jobs[2:]]
        assert folder.read(jobs[1])["windows"] == [1]
        assert folder.read(jobs[1])["prompt"] == jobs[1].case.prompt


def test_a_damaged_result_and_one_of_another_policy_are_missing(tmp_path):
    folder, job = StudyFolder(tmp_path, SETTINGS), Job(OTHERS[1], case_of(0))
    with folder.opened():
        folder.write(job, {})
        changed = Job(replace(job.row, policy=Window(12)), job.case)
        assert folder.missing([job, changed]) == [changed]
        [file] = (tmp_path / "results").rglob("*.json")
        file.write_text(file.read_text()[:-9])
        assert folder.missing([job]) == [job]


def test_another_studys_folder_is_refused(tmp_path):
    with StudyFolder(tmp_path, SETTINGS).opened():
        pass
    with (
        pytest.raises(PackForcingError, match=r"other settings \(weights\).*--output"),
        StudyFolder(tmp_path, {**SETTINGS, "weights": "b"}).opened(),
    ):
        pass


def test_one_study_at_a_time(tmp_path):
    folder = StudyFolder(tmp_path, SETTINGS)
    with folder.opened(), pytest.raises(PackForcingError, match="is in use"), folder.opened():
        pass


def test_another_compressor_leaves_what_does_not_use_it(tmp_path):
    rows = {row.name: row for row in study_rows(True)}
    jobs = [Job(rows[name], case) for name in ("window", "zero-shot", "trained") for case in (case_of(0), QUESTION)]
    with StudyFolder(tmp_path, SETTINGS, "a").opened():
        for job in jobs:
            StudyFolder(tmp_path, SETTINGS, "a").write(job, {})
    assert StudyFolder(tmp_path, SETTINGS, "a").missing(jobs) == []
    assert StudyFolder(tmp_path, SETTINGS, "b").missing(jobs) == jobs[4:]


def test_every_job_has_a_file_of_its_own(tmp_path):
    folder, jobs = StudyFolder(tmp_path, SETTINGS), jobs_of(study_rows(True), range(2), range(2))
    for job in jobs:
        folder.write(job, {})
    assert len(list((tmp_path / "results").rglob("*.json"))) == len(jobs)
    assert folder.missing(jobs) == []


def test_another_transformer_is_another_subject(tmp_path):
    weights = load_file(miniature.MODEL)
    weights = {name: 2 * t if name == "head.head.weight" else t for name, t in weights.items()}
    save_file(weights, tmp_path / "other.safetensors")
    shipped, other = load_miniature("fp32"), load_miniature("fp32", model=tmp_path / "other.safetensors")
    assert other.weights != shipped.weights
    assert other.compressor == shipped.compressor
    heads = [subject.model.net.head.head.weight for subject in (shipped, other)]
    assert torch.equal(2 * heads[0], heads[1])
