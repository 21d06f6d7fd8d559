"""The workflows on the demo models as a user runs them: opened from the templates, Run pressed, nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ImageChops

from packforcing_core.video import probe
from tests.comfyui.browser import FrontEnd
from tests.comfyui.draw_workflows import DEMO, api_names
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_front_end import LISTEN, lower_half_of_node, panel_text
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

SHORTEN = """seconds => window.app.rootGraph.nodes.filter(n => n.type === 'PackForcingSampler').forEach(
    node => { node.widgets.find(w => w.name === 'seconds').value = seconds; })"""
NODES_OF = "type => window.app.rootGraph.nodes.filter(n => n.type === type).map(n => String(n.id))"


@pytest.mark.parametrize("seconds", [12.0, pytest.param(120.0, marks=pytest.mark.long)])
def test_run_on_the_first_template_makes_the_film_while_the_preview_moves(
    comfy: ComfyServer, front_end: FrontEnd, seconds: float, tmp_path: Path
):
    front_end.open_template(comfy.pack_name, "demo_text_to_long_video")
    page = front_end.page
    page.evaluate(SHORTEN, seconds)
    page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.evaluate(LISTEN)
    (film,) = page.evaluate(NODES_OF, "PackForcingStreamingVAEDecode")
    with page.expect_response("**/api/prompt") as answer:
        page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.seen.includes('frame')", timeout=120_000)
    shots, changed = [lower_half_of_node(front_end, film)], 0
    while changed < 2 and len(shots) < 100:
        page.wait_for_timeout(100)
        shots.append(lower_half_of_node(front_end, film))
        changed += ImageChops.difference(*shots[-2:]).getbbox() is not None
    shots[-1].save(tmp_path / "preview.png")
    running = comfy.client.get(f"/history/{answer.value.json()['prompt_id']}") == {}
    entry = comfy.client.wait(answer.value.json()["prompt_id"], 900)
    page.wait_for_timeout(1000)
    front_end.screenshot(tmp_path / "done.png")
    info = probe(film_of(comfy, entry, film))
    print(tmp_path, info, panel_text(front_end), f"{page.evaluate('window.seen').count('frame')} previews")
    assert entry["status"]["status_str"] == "success"
    assert running, "the preview moved while the film was made"
    assert changed == 2
    assert info.frames == round((seconds * 16 - 13) / 16) * 16 + 13
    assert front_end.problems == []


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in api_names() if name.startswith(DEMO)])
def test_run_finishes(comfy: ComfyServer, front_end: FrontEnd, name: str, tmp_path: Path):
    front_end.open_template(comfy.pack_name, name)
    entry = front_end.run(1800)
    front_end.screenshot(tmp_path / f"{name}.png")
    print(tmp_path, entry["status"]["status_str"])
    assert entry["status"]["status_str"] == "success"
    assert front_end.problems == []
