"""Why a job was refused or failed, on the node to blame, in the real front end; and what of a video is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comfyui.browser import FrontEnd
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import show, stock_settings
from tests.comfyui.test_monitor import FINISHED, small_video, wait_for
from tests.comfyui.test_render import film_of

__all__ = ["stock_settings"]  # It is a fixture here too.
pytestmark = pytest.mark.browser

SET = """([id, name, value]) => {
    window.app.rootGraph.getNodeById(id).widgets.find(widget => widget.name === name).value = value;
}"""
SAYS = """([id, text]) => window.app?.rootGraph?.getNodeById(id)?.widgets?.find(w => w.name === 'packforcing_monitor')
    ?.element.innerText.includes(text)"""
MARKED = "id => (window.app.lastNodeErrors?.[id]?.errors ?? []).map(error => error.extra_info.input_name)"


@pytest.mark.quick
def test_a_refused_setting_alone_is_marked_and_its_node_says_why_until_it_is_changed(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    graph, decoder = small_video(files, 1.0, 61)
    (sampler,) = (int(number) for number, node in graph.prompt.items() if node["class_type"] == "PackForcingSampler")
    show(front_end, graph)
    front_end.page.evaluate(SET, [sampler, "timesteps", "abc"])
    front_end.page.get_by_role("button", name="Run", exact=True).first.click()
    wait_for(front_end, SAYS, [sampler, "Error: Got timesteps 'abc'"])
    front_end.screenshot(tmp_path / "refused.png")
    marked = front_end.page.evaluate(MARKED, sampler)
    print(tmp_path, marked)
    assert marked == ["timesteps"]
    front_end.page.evaluate(SET, [sampler, "timesteps", "1000"])
    front_end.page.wait_for_function(f"arg => !({SAYS})(arg)", arg=[sampler, "Error: "])
    video = film_of(comfy, comfy.client.wait(press_run(front_end)), decoder)
    wait_for(front_end, FINISHED, video.name)

    video.unlink()
    front_end.page.reload()
    wait_for(front_end, SAYS, [int(decoder), "The file is no longer there. Press Run to write it again."])
    again = film_of(comfy, comfy.client.wait(press_run(front_end)), decoder)
    wait_for(front_end, FINISHED, again.name)
    assert not front_end.page.evaluate(SAYS, [int(decoder), "no longer there"])


def test_a_node_of_others_says_why_it_failed_if_the_reason_is_ours(comfy: ComfyServer, front_end: FrontEnd):
    graph = Graph()
    models = graph.add("PackForcingDemoModels", checkpoint="PackForcing miniature", weight_dtype="default")
    prompt = graph.add("CLIPTextEncode", clip=models[1], text="a red circle " * 10)
    graph.add("PreviewAny", source=prompt[0])
    show(front_end, graph)
    assert front_end.run()["status"]["status_str"] == "error"
    wait_for(front_end, SAYS, [int(prompt.id), "Error: The prompt has 30 words"])
