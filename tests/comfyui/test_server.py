"""The harness against the real thing: what every other test of this folder leans on."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.comfyui.client import PromptFailedError, PromptRejectedError
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer


def count(**inputs) -> dict:
    graph = Graph()
    graph.add("PackForcingTestCount", **{"steps": 3, "pause": 0.0, "fail": False, **inputs})
    return graph.prompt


def test_the_pack_loads_without_a_failure(comfy: ComfyServer):
    log = comfy.log_text()
    assert "IMPORT FAILED" not in log
    assert "Cannot import" not in log


def test_a_prompt_runs_and_its_history_holds_what_the_node_showed(comfy: ComfyServer):
    entry = comfy.client.run(count(steps=4))
    assert entry["outputs"]["1"]["text"] == ["counted to 4"]


def test_events_carry_progress_and_previews_of_the_node(comfy: ComfyServer):
    with comfy.client.events() as events:
        prompt_id = comfy.client.queue(count(steps=5))
        events.wait_for(lambda seen: bool(seen.of_type("execution_success")))
    assert [data["value"] for data in events.of_type("progress")] == [1, 2, 3, 4, 5]
    assert events.previews == 5
    assert events.last_preview.metadata["node_id"] == "1"
    assert events.last_preview.metadata["prompt_id"] == prompt_id
    assert Image.open(io.BytesIO(events.last_preview.image)).size[0] == 512


def test_when_a_run_returns_everything_that_it_said_is_there(comfy: ComfyServer):
    """The history has it before the socket has said all: who asked the history first met a part of the events."""
    for steps in range(20, 40):
        with comfy.client.events() as events:
            comfy.client.run(count(steps=steps))
        assert [data["value"] for data in events.of_type("progress")] == list(range(1, steps + 1))
        assert events.previews == steps
        assert len(events.of_type("execution_success")) == 1


def test_a_refused_prompt_says_which_node_and_why(comfy: ComfyServer):
    reason = "node 1 PackForcingTestCount: value_smaller_than_min"
    with pytest.raises(PromptRejectedError, match=reason) as caught:
        comfy.client.queue(count(steps=-1))
    assert caught.value.status == 400


def test_a_failed_prompt_says_which_node_and_why(comfy: ComfyServer):
    with pytest.raises(PromptFailedError, match="node 1 PackForcingTestCount: ValueError: asked to fail"):
        comfy.client.run(count(fail=True))


def test_an_interrupted_prompt_ends_soon(comfy: ComfyServer):
    with comfy.client.events() as events:
        prompt_id = comfy.client.queue(count(steps=1000, pause=0.05))
        events.wait_for(lambda seen: seen.previews > 2)
        comfy.client.interrupt(prompt_id)
        entry = comfy.client.wait(prompt_id)
    assert [kind for kind, _ in entry["status"]["messages"]][-1] == "execution_interrupted"
    assert entry["outputs"] == {}
