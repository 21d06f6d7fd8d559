"""Nodes in a subgraph, in the real front end: they show what they show elsewhere, and the subgraph's node does so for
them while it is closed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.comfyui.browser import FrontEnd
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import NODES_LIKE, PANEL, choose, show
from tests.comfyui.test_monitor import CALLS, FINISHED, HOLD, PLAYS, VIDEO, held, wait_for
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

TO_SUBGRAPH = """ids => {
    const graph = window.app.rootGraph;
    return graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id)))).node.id;
}"""
TAKES_WIDGETS = """id => {
    const node = window.app.rootGraph.getNodeById(id);
    const widget = node.addDOMWidget('probe', 'probe', document.createElement('div'), { serialize: false });
    const taken = node.widgets.includes(widget);
    taken ? node.removeWidget(widget) : widget.onRemove?.();
    return taken;
}"""
"""Whether the node of a subgraph can have a widget of a pack: not in front ends before 1.58."""
SAID = """id => window.app.rootGraph.getNodeById(id).widgets.find(w => w.name === 'packforcing_monitor')
    ?.element.innerText ?? ''"""
FIXED = """() => window.app.rootGraph.nodes.flatMap(node => node.widgets ?? [])
    .filter(widget => widget.options?.values?.includes?.('randomize')).forEach(widget => { widget.value = 'fixed'; })"""
SAID_INSIDE = ".packforcing-monitor > .said"
OPEN = """id => {
    const { rootGraph, canvas } = window.app;
    canvas.setGraph(id ? rootGraph.getNodeById(id).subgraph : rootGraph);
}"""
INSIDE = f"() => {VIDEO} && window.app.canvas.graph !== window.app.rootGraph && {VIDEO}.offsetWidth > 0"


@pytest.mark.parametrize("nodes", [pytest.param("classic", marks=pytest.mark.quick), "vue"])
def test_the_node_of_a_closed_subgraph_shows_the_video_and_the_warnings(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph = Graph()
    model = graph.add("PackForcingTestHold", model=our_loader(graph, files), file=HOLD)[0]
    cache = graph.add("PackForcingKVCache", policy="Sliding window (Self-Forcing)")[0]
    settings = {"timesteps": "1000", "width": 96, "height": 64, "frames_per_block": 4, "kv_cache": cache}
    latents = stream(graph, model, seconds=6.0, seed=701 + NODES_LIKE[nodes], **settings)
    made = decode(graph, latents, files, blocks_per_segment=1)
    show(front_end, graph, NODES_LIKE[nodes])
    node = front_end.page.evaluate(TO_SUBGRAPH, [int(latents[0]), int(made.id)])
    wait_for(front_end, f"() => document.querySelector('{PANEL}').innerText.includes('5.8 s')")  # Of the sampler in it.
    shown = front_end.page.evaluate(TAKES_WIDGETS, node)
    with held(comfy) as allow:
        prompt = press_run(front_end)
        allow(4 * CALLS)
        if not shown:
            front_end.page.evaluate(OPEN, node)
        wait_for(front_end, PLAYS, 1.2)
        during = front_end.page.evaluate(SAID, node)
        front_end.screenshot(tmp_path / f"{nodes}-during.png")
        front_end.page.evaluate(OPEN, node)
        wait_for(front_end, INSIDE)
        front_end.screenshot(tmp_path / f"{nodes}-inside.png")
        front_end.page.evaluate(OPEN, None if shown else node)
        wait_for(front_end, PLAYS, 1.2)
    video = film_of(comfy, comfy.client.wait(prompt), f"{node}:{made.id}")
    wait_for(front_end, FINISHED, video.name)
    after = front_end.page.evaluate(SAID, node)
    front_end.screenshot(tmp_path / f"{nodes}-after.png")
    print(tmp_path, shown, during, after, sep="\n")
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    if shown:
        assert re.search(r"\nblock [34]/6 \| ", during), "the newest block, or the one before it"
        assert f"output/video/{video.name}" in after
        assert "PackForcing Sampler: Warning: Self-Forcing was trained with blocks of 3" in after
    assert front_end.problems == []


@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_nodes_that_are_put_into_a_subgraph_after_their_job_keep_what_they_said(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph = Graph()
    settings = {"timesteps": "1000", "width": 96, "height": 64, "frames_per_block": 4}
    latents = stream(graph, our_loader(graph, files), seconds=2.0, seed=711 + NODES_LIKE[nodes], **settings)
    made = decode(graph, latents, files, blocks_per_segment=1)
    show(front_end, graph, NODES_LIKE[nodes])
    front_end.page.evaluate(FIXED)
    prompt = press_run(front_end)
    video = film_of(comfy, comfy.client.wait(prompt), made.id)
    wait_for(front_end, FINISHED, video.name)
    node = front_end.page.evaluate(TO_SUBGRAPH, [int(latents[0]), int(made.id)])
    shown = front_end.page.evaluate(TAKES_WIDGETS, node)
    said = []
    for again in (False, True):  # Then nothing has to be sampled, so ComfyUI runs none of the nodes.
        if again:
            comfy.client.wait(press_run(front_end))
        if not shown:
            front_end.page.evaluate(OPEN, node)
        wait_for(front_end, FINISHED, video.name)
        front_end.screenshot(tmp_path / f"{nodes}-{again}.png")
        said.append(front_end.page.evaluate(SAID, node) if shown else "")
        front_end.page.evaluate(OPEN, node)
        wait_for(front_end, INSIDE)
        told = front_end.page.evaluate(f"() => [...document.querySelectorAll('{SAID_INSIDE}')].map(e => e.innerText)")
        said.append("\n".join(told))
        front_end.page.evaluate(OPEN, None)
    print(tmp_path, *said, sep="\n---\n")
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    for told in said[1::2] if not shown else said:
        assert "Warning: Self-Forcing was trained with blocks of 3" in told
        assert "before your change" not in told
    assert front_end.problems == []


def test_nodes_that_are_put_into_a_subgraph_during_their_job_go_on_showing_it(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    graph = Graph()
    model = graph.add("PackForcingTestHold", model=our_loader(graph, files), file=HOLD)[0]
    settings = {"timesteps": "1000", "width": 96, "height": 64, "frames_per_block": 4}
    latents = stream(graph, model, seconds=6.0, seed=721, **settings)
    made = decode(graph, latents, files, blocks_per_segment=1)
    show(front_end, graph)
    with held(comfy) as allow:
        prompt = press_run(front_end)
        allow(2 * CALLS)
        wait_for(front_end, PLAYS, 0.1)
        node = front_end.page.evaluate(TO_SUBGRAPH, [int(latents[0]), int(made.id)])
        front_end.page.evaluate(OPEN, node)
        wait_for(front_end, INSIDE)
        allow(4 * CALLS)
        wait_for(front_end, PLAYS, 1.2)
        front_end.screenshot(tmp_path / "during.png")
    video = film_of(comfy, comfy.client.wait(prompt), made.id)
    wait_for(front_end, FINISHED, video.name)
    front_end.screenshot(tmp_path / "after.png")
    said = front_end.page.evaluate(f"() => [...document.querySelectorAll('{SAID_INSIDE}')].map(e => e.innerText)")
    print(tmp_path, *said, sep="\n---\n")
    assert any(f"output/video/{video.name}" in text for text in said)
    assert front_end.problems == []
