"""A study's results in one file, from which the same tables come."""

from __future__ import annotations

import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.study.archive import pack, unpack
from packforcing_core.laboratory.study.folder import StudyFolder
from packforcing_core.laboratory.study.rows import OTHERS, TRAINED
from packforcing_core.laboratory.study.study import jobs_of

SETTINGS = {"weights": "a", "seconds": 15.0}
JOBS = jobs_of((*OTHERS[:2], TRAINED), range(2), range(2))


def filled(path, jobs=JOBS) -> StudyFolder:
    folder = StudyFolder(path, SETTINGS, "b")
    for number, job in enumerate(jobs):
        folder.write(job, {"recall": number / 7, "pictures": "large"})
    return folder


def test_results_come_back_to_the_last_bit_and_without_pictures(tmp_path):
    folder, again = filled(tmp_path / "one"), StudyFolder(tmp_path / "two", SETTINGS, "b")
    assert pack(folder, JOBS, tmp_path / "results.json.xz") == len(JOBS) == 18
    again.write(JOBS[3], {"recall": 5.0})
    assert unpack(again, JOBS, tmp_path / "results.json.xz") == 17
    for job in JOBS:
        was, found = folder.read(job), again.read(job)
        assert found["recall"] == (5.0 if job is JOBS[3] else was["recall"])
        assert "pictures" not in found
    assert again.missing(JOBS) == []


def test_results_of_what_is_no_row_any_more_stay_outside(tmp_path):
    pack(filled(tmp_path / "one"), JOBS, tmp_path / "results.json.xz")
    assert unpack(StudyFolder(tmp_path / "two", SETTINGS, "b"), JOBS[:4], tmp_path / "results.json.xz") == 4


@pytest.mark.parametrize("changed", [{"settings": {"weights": "c"}}, {"compressor": "c"}])
def test_an_archive_of_other_weights_is_refused(tmp_path, changed):
    pack(filled(tmp_path / "one"), JOBS, tmp_path / "results.json.xz")
    folder = StudyFolder(tmp_path / "two", **{"settings": SETTINGS, "compressor": "b", **changed})
    with pytest.raises(PackForcingError, match="holds results of"):
        unpack(folder, JOBS, tmp_path / "results.json.xz")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "results.json.xz").write_bytes(b"no")
    with pytest.raises(PackForcingError, match="not an archive of a study"):
        unpack(StudyFolder(tmp_path, SETTINGS), JOBS, tmp_path / "results.json.xz")
