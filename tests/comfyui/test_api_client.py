"""The example client of workflows/api, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
        small_workflow(comfy, "timed_prompts"),
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
    assert "-- PackForcingSampler" in done.stdout
    assert "prompt 2 at 1.5 s comes at 1.31 s, block 2" in done.stdout
    assert "block 3/3 | 2.1 of 2.1 s of video" in done.stdout
    (film,) = tmp_path.glob("*.mp4")
    assert probe(film).frames == 33


def test_it_says_what_the_server_refuses_and_what_fails(comfy: ComfyServer, tmp_path: Path):
    workflow = small_workflow(comfy, "deep_forcing")
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
