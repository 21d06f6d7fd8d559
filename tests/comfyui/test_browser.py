"""The browser harness against the real front end, on a graph of test-only and stock nodes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.browser import FrontEnd, until

pytestmark = pytest.mark.browser


def node(number: int, kind: str, values: list[Any]) -> dict[str, Any]:
    return {
        "id": number,
        "type": kind,
        "pos": [100 + 400 * number, 300],
        "size": [300, 200],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": values,
    }


def workflow(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}


def test_a_workflow_loads_runs_and_leaves_a_clean_console(front_end: FrontEnd, tmp_path: Path):
    front_end.load(workflow(node(1, "PackForcingTestCount", [5, 0.1, False])))
    assert front_end.node_types() == ["PackForcingTestCount"]
    assert front_end.missing_nodes() == []
    entry = front_end.run()
    assert entry["outputs"]["1"]["text"] == ["counted to 5"]
    front_end.screenshot(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 10_000
    assert front_end.problems == []


def test_a_missing_node_is_named(front_end: FrontEnd):
    front_end.load(workflow(node(1, "PackForcingTestCount", [5, 0.1, False]), node(2, "NoSuchNode", [])))
    assert front_end.missing_nodes() == ["NoSuchNode"]
    front_end.page.get_by_text("Missing node: NoSuchNode").wait_for()


def test_a_console_error_is_a_problem(front_end: FrontEnd):
    front_end.page.evaluate("console.error('broken on purpose')")
    front_end.page.evaluate("fetch('/no-such-file.js')")
    front_end.page.evaluate("setTimeout(() => { throw new Error('thrown on purpose') }, 0)")
    until(front_end, lambda: len(front_end.problems) >= 3)
    assert {problem.split(" (")[0] for problem in front_end.problems} == {
        "console: broken on purpose",
        "uncaught: thrown on purpose",
        "console: Failed to load resource: the server responded with a status of 404",
    }


def test_the_page_gets_what_it_asks_for_while_nobody_talks_to_it_and_nothing_from_elsewhere(front_end: FrontEnd):
    front_end.page.evaluate(
        """() => {
            const started = performance.now();
            fetch('/api/system_stats').then(answer => answer.json()).then(() => {
                window.tookSeconds = (performance.now() - started) / 1000;
            });
            fetch('https://example.org/elsewhere').catch(error => { window.elsewhere = error.name; });
        }"""
    )
    time.sleep(4)
    took = front_end.page.evaluate("window.tookSeconds")
    front_end.page.wait_for_function("window.elsewhere")
    print(f"{took:.2f} s")
    assert took < 3
    assert front_end.page.evaluate("window.elsewhere") == "TypeError"
