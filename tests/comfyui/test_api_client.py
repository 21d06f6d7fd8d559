"""The example client of workflows/api, run as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from packforcing_core.video import probe
from tests.comfyui.client import TIMEOUT_S
from tests.comfyui.draw_workflows import WORKFLOWS, place_files, read_api
from tests.comfyui.server import ComfyServer


def run(comfy: ComfyServer, workflow: dict, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = folder / "workflow.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    command = [sys.executable, str(WORKFLOWS / "api" / "render.py"), str(file), "--server", f"127.0.0.1:{comfy.port}"]
    return subprocess.run(
        [*command, "--folder", str(folder), *arguments], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
    )


def small_workflow(comfy: ComfyServer, name: str) -> dict:
    """A shipped workflow, small and with a stand-in for the text encoder."""
    workflow = read_api(name)
    place_files(comfy, workflow)
    for node in workflow.values():
        if node["class_type"] == "CLIPLoader":
            node.update(class_type="PackForcingTestClip", inputs={})
        elif node["class_type"] == "PackForcingSampler":
            node["inputs"] |= {"width": 64, "height": 32}
    return workflow


def test_it_changes_the_workflow_follows_the_render_and_downloads_the_film(comfy: ComfyServer, tmp_path: Path):
    done = run(
        comfy,
        small_workflow(comfy, "packforcing_wan_timed_prompts"),
        tmp_path,
        "--prompt",
        "[0s] a boat [1.5s] rain",
        "--seconds",
        "2",
        "--seed",
        "7",
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "--prompt replaces what node" in done.stdout
    assert "-- PackForcingSampler" in done.stdout
    lines = done.stdout.splitlines()
    assert not any(line.startswith("-- ") and after.startswith("-- ") for line, after in pairwise(lines))
    assert "prompt 2 at 1.5 s starts at 1.31 s, block 3" in done.stdout
    assert "block 3/3 | 2.1 s of 2.1 s" in done.stdout
    (film,) = tmp_path.glob("*.mp4")
    assert probe(film).frames == 33


def test_it_says_what_the_server_refuses_and_what_fails(comfy: ComfyServer, tmp_path: Path):
    workflow = small_workflow(comfy, "packforcing_wan_deep_forcing")
    refused = run(comfy, workflow, tmp_path, "--seconds", "-1")
    print(refused.stderr[:300])
    assert refused.returncode == 1
    assert "refused" in refused.stderr
    (number,) = (n for n, node in workflow.items() if node["class_type"] == "PackForcingKVCache")
    workflow[number]["inputs"]["policy.recent_frames"] = 20
    failed = run(comfy, workflow, tmp_path, "--seconds", "2")
    print(failed.stderr[:300])
    assert failed.returncode == 1
    assert "recent_frames" in failed.stderr
    assert list(tmp_path.glob("*.mp4")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be read"), ("{", "is no JSON"), ('{"nodes": []}', "Export (API)"), ('{"1": {}}', "class_type")],
)
def test_a_file_that_is_no_workflow_is_one_sentence(tmp_path: Path, text: str | None, words: str):
    file = tmp_path / "workflow.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    done = run_file(file, "127.0.0.1:9", tmp_path)
    print(done.stderr)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_is_down_is_one_sentence(tmp_path: Path):
    file = tmp_path / "workflow.json"
    file.write_text("{}", encoding="utf-8")
    done = run_file(file, "127.0.0.1:9", tmp_path)
    print(done.stderr)
    assert done.returncode == 1
    assert "127.0.0.1:9 does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_server_may_be_given_as_a_url(comfy: ComfyServer, tmp_path: Path):
    file = tmp_path / "workflow.json"
    file.write_text("{}", encoding="utf-8")
    done = run_file(file, f"http://127.0.0.1:{comfy.port}/", tmp_path)
    print(done.stderr)
    assert done.stderr.startswith("refused: ")


def run_file(file: Path, server: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WORKFLOWS / "api" / "render.py"), str(file), "--server", server]
    return subprocess.run([*command, "--folder", str(folder)], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S)


@pytest.mark.parametrize("how", ["deleted", "interrupted by Ctrl-C"])
def test_a_job_that_goes_away_ends_the_client(comfy: ComfyServer, tmp_path: Path, how: str):
    """The first job holds the server; the client's own waits behind it, and is deleted, or the client is stopped."""
    first = comfy.client.queue({"1": {"class_type": "PackForcingTestCount", "inputs": COUNTING}})
    file = tmp_path / "workflow.json"
    own = {"1": {"class_type": "PackForcingTestCount", "inputs": {**COUNTING, "pause": 0.03}}}
    file.write_text(json.dumps(own), encoding="utf-8")
    command = [sys.executable, str(WORKFLOWS / "api" / "render.py"), str(file), "--server", f"127.0.0.1:{comfy.port}"]
    client = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        # What a shell starts in its background ignores SIGINT, and so do its children, unless told.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        (job,) = waiting(comfy)
        if how == "deleted":
            comfy.client.post("/queue", {"delete": [job]})
        else:
            client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=TIMEOUT_S)
    finally:
        client.kill()
        left = [item[1] for item in comfy.client.get("/queue")["queue_pending"]]
        comfy.client.interrupt(first)
        comfy.client.wait(first)
    print(said)
    assert client.returncode == 1
    assert ("deleted by somebody else" if how == "deleted" else "cancelled") in said
    assert left == []


COUNTING = {"steps": 3000, "pause": 0.02, "fail": False}


def waiting(comfy: ComfyServer) -> list[str]:
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        jobs = [item[1] for item in comfy.client.get("/queue")["queue_pending"]]
        if jobs:
            return jobs
        time.sleep(0.1)
    raise TimeoutError("the client queued nothing")
