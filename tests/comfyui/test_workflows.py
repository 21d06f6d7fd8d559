"""The shipped workflows, in both their forms, in the real front end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packforcing_core.video import probe
from tests.comfyui.browser import BrowserMissingError, FrontEnd, open_front_end
from tests.comfyui.draw_workflows import api_names, place_files, read_api
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_render import film_of
from tests.parts import missing


@pytest.fixture(scope="module")
def templates(comfy: ComfyServer) -> Iterator[FrontEnd]:
    """One browser for all templates, with the files of all of them in place."""
    for name in api_names():
        place_files(comfy, read_api(name))
    try:
        with open_front_end(comfy) as front_end:
            yield front_end
    except BrowserMissingError as error:
        missing(str(error))


@pytest.mark.browser
@pytest.mark.parametrize("name", api_names())
def test_a_template_opens_whole_and_is_the_same_as_its_api_form(comfy: ComfyServer, templates: FrontEnd, name: str):
    front_end = templates
    front_end.open_template(comfy.pack_name, name)
    assert front_end.missing_nodes() == []
    drawn = front_end.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    for node in drawn.values():
        node["inputs"].pop("video-preview", None)  # What the front end itself hangs on Load Video.
    assert {k: node["inputs"] for k, node in drawn.items()} == {k: n["inputs"] for k, n in read_api(name).items()}
    assert front_end.problems == []


@pytest.mark.parametrize("name", api_names())
def test_a_workflow_runs_over_the_api(comfy: ComfyServer, name: str):
    """As shipped, but small, short and with a stand-in for the text encoder."""
    workflow = read_api(name)
    place_files(comfy, workflow)
    for node in workflow.values():
        if node["class_type"] == "CLIPLoader":
            node.update(class_type="PackForcingTestClip", inputs={})
        elif node["class_type"] == "PackForcingSampler":
            node["inputs"] |= {"seconds": 2.0, "width": 64, "height": 32}
    entry = comfy.client.run(workflow)
    films = [node for node, shown in entry["outputs"].items() if "images" in shown]
    for number in films:
        film = film_of(comfy, entry, number)
        info = probe(film)
        print(film.name, info)
        stacked = workflow[number]["class_type"] == "PackForcingStackVideos"
        frames = 36 if name == "continue_video" else 33  # Behind another film no first frame is alone.
        size = 64 * (3 if stacked else 1), 32 * (2 if stacked else 1)
        assert (info.frames, info.width, info.height) == (frames, *size)
    makers = {"PackForcingStreamingVAEDecode", "PackForcingStackVideos", "SaveVideo"}
    assert sorted(films) == sorted(number for number, node in workflow.items() if node["class_type"] in makers)


def test_every_node_is_used_by_a_workflow(comfy: ComfyServer):
    ours = {name for name in comfy.client.object_info() if name.startswith("PackForcing") and "Test" not in name}
    used = {node["class_type"] for name in api_names() for node in read_api(name).values()}
    print(sorted(ours - used))
    assert ours - used == set()
