"""`packforcing batch`: a list of jobs, locally and on Ray, and what happens when one breaks or a worker dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packforcing_core.cli.jobs import read_jobs
from packforcing_core.cli.main import main
from packforcing_core.errors import PackForcingError
from tests.core.cli.test_modes import FILES
from tests.core.cli.test_render import render
from tests.parts import missing

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


FEW = '{"checkpoint": "c", "vae": "v", "prompt": "p"}'


def shared(files: Path, seconds: float) -> tuple[str, str]:
    options = {name: str(files / file) for name, file in FILES.items()}
    size = {"width": 64, "height": 32, "device": "cpu", "blocks-per-segment": 1}
    return "--shared", json.dumps({**options, **size, "seconds": seconds})


def write_jobs(path: Path, *jobs) -> Path:
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    return path


def test_jobs_run_in_order_a_broken_one_is_told_and_the_same_command_does_the_rest(files, tmp_path, capsys):
    jobs = write_jobs(tmp_path / "jobs.jsonl", {"name": "a", "seed": 1}, {"name": "bad", "vae": "no"}, {"seed": 2})
    out = tmp_path / "out"
    command = ["batch", str(jobs), "--folder", str(out), "--engine", "local", *shared(files, 1)]
    assert main(command) == 1
    said = capsys.readouterr().out
    print(said)
    assert "failed: bad: no is not a file" in said
    assert sorted(path.name for path in out.glob("*.mp4")) == ["a.mp4", "job-0003.mp4"]
    assert (out / "a.mp4").read_bytes() != (out / "job-0003.mp4").read_bytes()
    assert render(files, tmp_path / "single.mp4", "--seed", "1") == 0
    assert (out / "a.mp4").read_bytes() == (tmp_path / "single.mp4").read_bytes()
    write_jobs(jobs, {"name": "a", "seed": 1}, {"name": "bad", "seed": 5}, {"seed": 2})
    before = (out / "a.mp4").stat().st_mtime_ns
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "3 jobs, 2 of them done before" in said
    assert (out / "a.mp4").stat().st_mtime_ns == before


def test_nothing_is_deleted_that_the_batch_did_not_replace(files, tmp_path, capsys):
    """A video of the user's own under a job's name, a job that was edited behind its end, one whose model is gone."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "holiday.mp4").write_bytes(b"my own")
    path = write_jobs(tmp_path / "jobs.jsonl", {"name": "holiday", "seed": 1})
    command = ["batch", str(path), "--folder", str(out), "--engine", "local", *shared(files, 1)]
    assert main(command) == 0
    assert (out / "holiday.mp4").read_bytes() == b"my own"
    made = (out / "holiday-2.mp4").read_bytes()
    for edited, message in (({"seed": 2}, "seed: the render has 1, now 2"), ({"checkpoint": "gone"}, "not a file")):
        write_jobs(path, {"name": "holiday", "seed": 1, **edited})
        assert main(command) == 1
        assert message in capsys.readouterr().out
        assert sorted(file.name for file in out.glob("*.mp4")) == ["holiday-2.mp4", "holiday.mp4"]
        assert (out / "holiday-2.mp4").read_bytes() == made
    write_jobs(path, {"name": "holiday", "seed": 1})
    assert main(command) == 0
    assert "1 of them done before" in capsys.readouterr().out


DONE = {"job": "0" * 32, "video": "a.mp4"}


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"", b"{", b"null", b"[]", b'"a"', b"\xff\xfe", b"[" * 100_000, b"5"),
        *({**DONE, "video": video} for video in ("", "../a.mp4", "/etc/passwd", "a\0.mp4", "x" * 5000, 5, None, [])),
        *({**DONE, "job": job} for job in ("", 5, None, "other")),
        {"video": "a.mp4"},
        DONE,
    ],
    ids=lambda damaged: str(damaged)[:24],
)
def test_a_damaged_mark_that_a_job_is_done_is_none_and_nothing_is_deleted(tmp_path, damaged):
    """The job is rendered again, under a free name; what is there stays."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a.mp4").write_bytes(b"a video")
    (out / "a" / "done.json").write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    path = write_jobs(tmp_path / "jobs.jsonl", {"name": "a"})
    before[path] = path.read_bytes()
    (job,) = read_jobs(path, out, FEW)
    assert not job.is_done()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    job.mark_done(out / "a.mp4")
    assert job.video() == out / "a.mp4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1"),
        ("[1]", "expected a JSON object"),
        ('{"name": "../x"}', "Got the render name"),
        ('{"folder": "/tmp/x"}', "a job cannot set folder"),
        ('{"prompt-file": "a.txt"}', "a job holds its prompt itself"),
        ('{"output": "/tmp/x.mp4"}', "a job cannot set output"),
        ('{"render-mode": "new"}', "a job cannot set render_mode"),
        ('{"no such": 1}', "unrecognized arguments"),
        ('{"seconds": "x"}', "invalid float value"),
        ('{"seed": {"a": 1}}', "plain values"),
        ('{"name": "a"}\n{"name": "A"}', "line 2: the name 'A' is used twice"),
        ("[" * 100_000, "line 1"),
        ("", "holds no jobs"),
    ],
)
def test_a_line_that_is_no_job_is_named(tmp_path, line, message):
    path = tmp_path / "jobs.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(PackForcingError, match=re.escape(message)):
        read_jobs(path, tmp_path / "out", FEW)
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.jsonl"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.dictionaries(st.sampled_from(["name", "seed", "prompt", "width", "folder", "x"]), st.text() | st.integers()))
def test_any_job_is_refused_or_stays_in_the_folder(tmp_path, job):
    path = write_jobs(tmp_path / "jobs.jsonl", job)
    out = tmp_path / "out"
    try:
        (made,) = read_jobs(path, out, FEW)
    except PackForcingError:
        return
    film = out / f"{made.name}.mp4"
    assert made.folder.parent == out
    assert made.arguments[-2:] == (f"--folder={made.folder}", f"--output={film}")


def cluster_of(pid: int) -> tuple[set[str], set[str]]:
    """Addresses that the processes below `pid` listen at, and how Ray's head lets others in."""
    addresses, modes = set(), set()
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found = [c.laddr.ip for c in child.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            addresses.update(found)
            if child.name() == "gcs_server":
                modes.add(child.environ().get("RAY_AUTH_MODE"))
    return addresses, modes


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_ray_worker_killed_in_the_middle_is_replaced_and_its_render_resumed_by_another(files, tmp_path):
    try:
        import ray  # noqa: F401
    except ImportError:
        missing("Ray is not installed")
    # Seconds of video, 135 blocks of some 50 ms: the batch says once a second how far it is, and is to be heard while
    # there is much left, by a test that may get its turn late. The others only have to be done as well.
    long = 100
    jobs = write_jobs(tmp_path / "jobs.jsonl", {"name": "a", "seed": 0, "seconds": long}, {"name": "b"}, {"name": "c"})
    out = tmp_path / "out"
    options = [str(jobs), "--folder", str(out), "--engine", "ray", "--workers", "2", *shared(files, 0.1)]
    words = [sys.executable, "-m", "packforcing_core.cli.main", "batch", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment["RAY_worker_niceness"] = "0"  # By default its workers wait for all other work of a busy machine,
    environment["RAY_worker_register_timeout_seconds"] = "600"  # must be there in a minute,
    environment["RAY_memory_monitor_refresh_ms"] = "0"  # are killed when others take the memory,
    environment["RAY_USAGE_STATS_ENABLED"] = "0"  # and are reported to Ray's makers.
    killed, said, listening, modes = 0, [], set(), set()
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as process:
        for line in process.stdout:
            said.append(line)
            at_work = re.search(r"a: (\d+) blocks \(process (\d+)\)", line)
            if at_work and not killed and 1 <= int(at_work[1]) < 100:
                killed = int(at_work[2])
                listening, modes = cluster_of(process.pid)
                os.kill(killed, signal.SIGKILL)
    print("".join(said))
    assert process.returncode == 0
    assert killed
    print(listening)
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "Ray must listen to this machine alone"
    assert modes == {"token"}
    assert any("the worker of a died in attempt 1" in line for line in said)
    assert sorted(path.name for path in out.glob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]
    starts = [
        line
        for line in map(json.loads, (out / "a" / "telemetry.jsonl").read_text(encoding="utf-8").splitlines())
        if line["event"] == "started"
    ]
    print(starts)
    assert len(starts) == 2
    assert starts[1]["known"] >= 1
    assert render(files, tmp_path / "single.mp4", "--seconds", str(long), "--seed", "0") == 0
    assert (out / "a.mp4").read_bytes() == (tmp_path / "single.mp4").read_bytes()
