"""Workers that break, die or lose their master: every job is done, or its problem is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packforcing_core.laboratory.study.workers import run_jobs
from tests.core.laboratory.study.chores import Chore, load, work

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.skipif(os.name == "nt", reason="kills itself with a POSIX signal")
def test_a_killed_workers_job_is_done_again(tmp_path):
    chores = [Chore("a", tmp_path), Chore("b", tmp_path, "die_once"), Chore("c", tmp_path), Chore("d", tmp_path)]
    found = {finished.job.name: finished for finished in run_jobs(chores, load, work, workers=2)}
    assert {name: one.answer for name, one in found.items()} == {name: f"{name} by 7" for name in "abcd"}
    assert not any(one.problem for one in found.values())
    tries = {chore.name: chore.tries() for chore in chores}
    print(f"processes that had each job in hand: {tries}")
    assert len(tries["b"]) == len(set(tries["b"])) == 2
    assert [len(tries[name]) for name in "acd"] == [1, 1, 1]


@pytest.mark.skipif(os.name == "nt", reason="kills itself with a POSIX signal")
def test_what_breaks_or_always_kills_its_worker_is_told_and_stops_no_other(tmp_path):
    chores = [Chore("bad", tmp_path, "fail"), Chore("deadly", tmp_path, "die"), Chore("good", tmp_path)]
    found = {finished.job.name: finished for finished in run_jobs(chores, load, work, workers=1, attempts=2)}
    assert "ValueError: bad is broken" in found["bad"].problem
    assert "2 processes that had it in hand ended, the last with code -9" in found["deadly"].problem
    assert len(chores[1].tries()) == 2
    assert (found["good"].answer, found["good"].problem) == ("good by 7", "")


def test_the_workers_end_with_the_iterator(tmp_path):
    finished = run_jobs([Chore("a", tmp_path), *(Chore(str(i), tmp_path, "sleep") for i in range(9))], load, work, 1)
    assert next(finished).job.name == "a"
    finished.close()
    assert alive(Chore("a", tmp_path).tries()) == []


@pytest.mark.skipif(os.name == "nt", reason="ends with a POSIX signal")
def test_the_workers_end_when_their_master_is_killed(tmp_path):
    master = subprocess.Popen([sys.executable, "-m", "tests.core.laboratory.study.chores", str(tmp_path)], cwd=ROOT)
    first = Chore("one", tmp_path)
    until(lambda: first.tries() or master.poll() is not None)
    assert master.poll() is None
    master.kill()
    master.wait()
    until(lambda: not alive(first.tries()))


def alive(processes: list[int]) -> list[int]:
    found = []
    for process in processes:
        try:
            os.kill(process, 0)
            # One that ended and that nobody has asked about yet is no more alive.
            state = Path(f"/proc/{process}/stat")
            if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(process)
        except OSError:
            pass
    return found


def until(holds) -> None:
    stop = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < stop
        time.sleep(0.05)
