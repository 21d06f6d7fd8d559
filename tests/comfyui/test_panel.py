"""The drawing on the KV Cache node is of this run from its start, also when there is nothing left to sample; and the
side panel takes nothing from a node.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comfyui.browser import FrontEnd
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import NODES_LIKE, PANEL, choose, panel_text, show, small_render, stock_settings
from tests.comfyui.test_monitor import HOLD, SET_SEED, held, other_browser

__all__ = ["stock_settings"]  # It is a fixture here too.
pytestmark = pytest.mark.browser

SHOWS = r"([panel, text]) => document.querySelector(panel).innerText.replace(/\s+/g, ' ').includes(text)"
SELECTED = "most selected blocks: 2"


def wait_for_panel(front_end: FrontEnd, text: str) -> None:
    front_end.page.wait_for_function(SHOWS, arg=[PANEL, text])


def test_the_panel_is_of_this_run_from_its_start(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    graph, _, video = small_render(files, 3.6, "1000", 71, width=192, height=96)
    (sampler,) = (node["inputs"] for node in graph.prompt.values() if node["class_type"] == "PackForcingSampler")
    graph.prompt["99"] = {"class_type": "PackForcingTestHold", "inputs": {"model": sampler["model"], "file": HOLD}}
    sampler["model"] = ["99", 0]
    show(front_end, graph)
    comfy.client.wait(press_run(front_end))
    wait_for_panel(front_end, SELECTED)
    finished = panel_text(front_end)
    assert "block 5 / 5" in finished
    front_end.page.evaluate(SET_SEED, 72)
    with held(comfy):
        prompt = press_run(front_end)
        wait_for_panel(front_end, "block 1 / 5")
        assert SELECTED not in panel_text(front_end), "that was the run before"
    comfy.client.wait(prompt)
    graph.prompt[video]["inputs"]["quality"] = 30
    with other_browser(front_end) as other:
        show(other, graph)
        planned = panel_text(other)
        comfy.client.wait(press_run(other))
        wait_for_panel(other, SELECTED)
        print(finished, planned, panel_text(other), sep="\n")
        assert SELECTED not in planned
        assert panel_text(other) == finished, "the first run's, of which no block was sampled again"


SELECT = """id => {
    const canvas = window.app.canvas;
    canvas.deselectAll?.();
    canvas.select?.(window.app.rootGraph.getNodeById(id));
}"""
PLACE = """where => {
    const element = document.querySelector(where);
    const { x, y, width, height } = element.getBoundingClientRect();
    return [x, y, width, height].map(Math.round);
}"""
MONITOR = ".packforcing-monitor:has(video)"


@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_the_side_panel_takes_nothing_from_a_node(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph, cache, video = small_render(files, 3.0, "1000", 73 + NODES_LIKE[nodes], width=192, height=96)
    show(front_end, graph, NODES_LIKE[nodes])
    comfy.client.wait(press_run(front_end))
    wait_for_panel(front_end, "block 4 / 4")
    front_end.page.wait_for_function(f"document.querySelector('{MONITOR} video')?.duration > 0")
    front_end.page.wait_for_timeout(1000)
    before = [front_end.page.evaluate(PLACE, where) for where in (PANEL, MONITOR)]
    choose(front_end, "Comfy.RightSidePanel.IsOpen", True)
    for node in (cache, video):
        front_end.page.evaluate(SELECT, int(node))
        front_end.page.wait_for_timeout(1000)
        front_end.screenshot(tmp_path / f"{node}.png")
        shown = front_end.page.locator("body").inner_text()
        assert "Parameters" in shown
        assert "packforcing_monitor" not in shown
        assert "packforcing_window" not in shown
    choose(front_end, "Comfy.RightSidePanel.IsOpen", False)
    front_end.page.evaluate("window.app.canvas.deselectAll?.()")
    front_end.page.wait_for_timeout(1000)
    after = [front_end.page.evaluate(PLACE, where) for where in (PANEL, MONITOR)]
    print(tmp_path, before, after)
    assert after == before
    assert front_end.problems == []
