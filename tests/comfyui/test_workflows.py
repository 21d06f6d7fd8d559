"""The shipped workflows, in both their forms, in the real front end."""

from __future__ import annotations

import pytest

from tests.comfyui.browser import FrontEnd
from tests.comfyui.draw_workflows import api_names, place_files, read_api
from tests.comfyui.server import ComfyServer

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("name", api_names())
def test_a_template_opens_whole_and_is_the_same_as_its_api_form(comfy: ComfyServer, front_end: FrontEnd, name: str):
    place_files(comfy, read_api(name))
    front_end.open_template(comfy.pack_name, name)
    assert front_end.missing_nodes() == []
    drawn = front_end.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert {k: node["inputs"] for k, node in drawn.items()} == {k: n["inputs"] for k, n in read_api(name).items()}
    assert front_end.problems == []
