"""The shipped workflows, in both their forms, in the real front end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext

from packforcing_core.video import probe
from tests.comfyui.browser import FrontEnd, open_front_end
from tests.comfyui.draw_workflows import DEMO, api_names, place_files, read_api
from tests.comfyui.layout import WINDOW
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_front_end import NODES_LIKE, choose
from tests.comfyui.test_render import film_of

WIDGETS = ("BOOLEAN", "COMBO", "FLOAT", "INT", "STRING")
OVERLAPS = """() => {
    const nodes = window.app.rootGraph.nodes, boxes = nodes.map(node => [...node.boundingRect]), found = [];
    boxes.forEach(([x, y, w, h], i) => boxes.slice(0, i).forEach(([X, Y, W, H], j) => {
        if (x < X + W && X < x + w && y < Y + H && Y < y + h) found.push([nodes[i].title, nodes[j].title]);
    }));
    return found;
}"""


@pytest.fixture(scope="module")
def templates(browser: BrowserContext, comfy: ComfyServer) -> Iterator[FrontEnd]:
    """One browser for all templates, with the files of all of them in place."""
    for name in api_names():
        place_files(comfy, read_api(name))
    with open_front_end(browser, comfy, *WINDOW) as front_end:
        yield front_end
        choose(front_end, "Comfy.VueNodes.Enabled", False)


@pytest.mark.browser
@pytest.mark.parametrize("nodes", NODES_LIKE)
@pytest.mark.parametrize("name", api_names())
def test_a_template_opens_whole_and_readable_and_is_the_same_as_its_api_form(
    comfy: ComfyServer, templates: FrontEnd, name: str, nodes: str
):
    front_end = templates
    choose(front_end, "Comfy.VueNodes.Enabled", NODES_LIKE[nodes])
    front_end.open_template(comfy.pack_name, name)
    zoom, without_text = front_end.page.evaluate("[window.app.canvas.ds.scale, window.app.canvas.low_quality]")
    print(name, f"opens at a zoom of {zoom:.3f}, text is {'not ' if without_text else ''}drawn")
    assert not without_text, "the whole graph is in view, and its nodes are too small to be read"
    assert front_end.page.evaluate(OVERLAPS) == []
    assert front_end.missing_nodes() == []
    drawn = front_end.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    for node in drawn.values():
        node["inputs"].pop("video-preview", None)  # What the front end itself hangs on Load Video.
    assert {k: node["inputs"] for k, node in drawn.items()} == {k: n["inputs"] for k, n in read_api(name).items()}
    assert front_end.problems == []


def goes_on_from_a_video(workflow: dict, film: str) -> bool:
    sampler = workflow.get(workflow[film]["inputs"].get("stream", [""])[0], {"inputs": {}})
    start = workflow.get(sampler["inputs"].get("start", [""])[0], {"inputs": {}})
    return "video" in start["inputs"]


@pytest.mark.parametrize("name", api_names())
def test_a_workflow_runs_over_the_api(comfy: ComfyServer, name: str):
    """As shipped, but short; those with large files small too, and with a stand-in for the text encoder."""
    workflow, demo = read_api(name), name.startswith(DEMO)
    place_files(comfy, workflow)
    for node in workflow.values():
        if node["class_type"] == "CLIPLoader":
            node.update(class_type="PackForcingTestClip", inputs={})
        elif node["class_type"] == "PackForcingSampler":
            node["inputs"] |= {"seconds": 3.0} if demo else {"seconds": 2.0, "width": 64, "height": 32}
    entry = comfy.client.run(workflow)
    films = [node for node, shown in entry["outputs"].items() if "images" in shown]
    for number in films:
        film = film_of(comfy, entry, number)
        info = probe(film)
        print(film.name, info)
        stacked = workflow[number]["class_type"] == "PackForcingStackVideos"
        # Behind another film no first frame is alone.
        frames = 3 * (16 if demo else 12) - (0 if goes_on_from_a_video(workflow, number) else 3)
        width, height = (128, 64) if demo else (64, 32)
        assert (info.frames, info.width, info.height) == (frames, width * (3 if stacked else 1), height + 32 * stacked)
    makers = {"PackForcingStreamingVAEDecode", "PackForcingStackVideos", "SaveVideo"}
    assert sorted(films) == sorted(number for number, node in workflow.items() if node["class_type"] in makers)


def test_templates_set_every_widget_of_our_nodes(comfy: ComfyServer):
    """A widget that is newer than a template would show its own default there."""
    info = comfy.client.object_info()
    for name in api_names():
        for number, node in read_api(name).items():
            if not node["class_type"].startswith("PackForcing"):
                continue
            known = {
                **info[node["class_type"]]["input"]["required"],
                **info[node["class_type"]]["input"].get("optional", {}),
            }
            widgets = {key for key, (kind, *_) in known.items() if isinstance(kind, list) or kind in WIDGETS}
            assert widgets - set(node["inputs"]) == set(), (name, number)


def test_every_node_is_used_by_a_workflow(comfy: ComfyServer):
    ours = {name for name in comfy.client.object_info() if name.startswith("PackForcing") and "Test" not in name}
    used = {node["class_type"] for name in api_names() for node in read_api(name).values()}
    print(sorted(ours - used))
    assert ours - used == set()
