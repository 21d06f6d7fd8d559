"""What an artist sees, in the real front end: the panel of the KV Cache node, the moving preview, help, Chinese."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.comfyui.browser import FrontEnd
from tests.comfyui.graphs import Graph
from tests.comfyui.node_texts import LOCALES, our_nodes, read_json
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_memory import preset, small_bank

pytestmark = pytest.mark.browser
PANEL = ".packforcing-window"
NODES_LIKE = {"classic": False, "vue": True}
LISTEN = """() => {
    window.seen = [];
    const api = window.comfyAPI.api.api;
    api.addEventListener('packforcing.frame', () => window.seen.push('frame'));
    api.addEventListener('packforcing.block', (event) => window.seen.push(event.detail.block));
}"""


@pytest.fixture(autouse=True)
def stock_settings(front_end: FrontEnd) -> Iterator[None]:
    """Settings are the server's: the tests after this one get them as they were."""
    yield
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    choose(front_end, "Comfy.RightSidePanel.IsOpen", False)
    choose(front_end, "Comfy.Locale", "en")


def choose(front_end: FrontEnd, setting: str, value: object) -> None:
    front_end.page.evaluate("([id, value]) => window.app.extensionManager.setting.set(id, value)", [setting, value])


def small_render(files: Files, seconds: float, steps: str, seed: int, **size) -> tuple[Graph, str, str]:
    """(graph, id of the KV Cache node, id of the decode node)"""
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
    latents = stream(
        graph,
        our_loader(graph, files),
        kv_cache=cache,
        vae=vae,
        seconds=seconds,
        timesteps=steps,
        seed=seed,
        **size,
    )
    film = decode(graph, latents, files)
    graph.prompt[film.id]["inputs"]["vae"] = vae
    del graph.prompt[str(len(graph.prompt) - 1)]  # the second VAE loader, which nothing uses now
    return graph, cache[0], film.id


def show(front_end: FrontEnd, graph: Graph, vue: bool = False) -> None:
    choose(front_end, "Comfy.VueNodes.Enabled", vue)
    front_end.page.evaluate("api => window.app.loadApiJson(api, 'small')", graph.prompt)
    front_end.page.wait_for_function("n => window.app.rootGraph.nodes.length === n", arg=len(graph.prompt))
    front_end.page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    front_end.page.wait_for_timeout(800)


def panel_text(front_end: FrontEnd) -> str:
    front_end.page.locator(f"{PANEL} svg").wait_for()
    return front_end.page.locator(PANEL).inner_text().replace("\n", " ")


def picture(front_end: FrontEnd, where: str) -> Image.Image:
    return Image.open(io.BytesIO(front_end.page.locator(where).screenshot())).convert("RGB")


def lower_half_of_node(front_end: FrontEnd, node: str) -> Image.Image:
    """Where a node shows its preview, in both kinds of nodes."""
    x, y, width, height = front_end.page.evaluate(
        """id => {
            const node = window.app.rootGraph.getNodeById(id), canvas = window.app.canvas, ds = canvas.ds;
            const page = canvas.canvas.getBoundingClientRect();
            const at = [0, 1].map(i => (node.pos[i] + ds.offset[i]) * ds.scale);
            return [page.x + at[0], page.y + at[1], node.size[0] * ds.scale, node.size[1] * ds.scale];
        }""",
        int(node),
    )
    clip = {"x": x, "y": y + height / 2, "width": width, "height": height / 2}
    return Image.open(io.BytesIO(front_end.page.screenshot(clip=clip))).convert("RGB")


@pytest.mark.parametrize("nodes", ["classic", pytest.param("vue", marks=pytest.mark.quick)])
def test_the_panel_draws_the_plan_and_follows_the_widgets(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph, cache, _ = small_render(files, 30.0, "1000, 500", 31, width=832, height=480)
    show(front_end, graph, NODES_LIKE[nodes])
    before = panel_text(front_end)
    colours = picture(front_end, PANEL).getcolors(1 << 20)
    front_end.screenshot(tmp_path / f"{nodes}.png")
    print(tmp_path, before, len(colours), "colours")
    # 3 + 3 + 3 full frames of 1,560 tokens and two blocks of 182
    assert "14,404 tokens" in before
    assert {(79, 140, 201), (208, 138, 69), (90, 168, 103)} <= {colour for _, colour in colours}

    set_widget = (
        "([id, name, value]) => window.app.rootGraph.getNodeById(id).widgets.find(w => w.name === name).value = value"
    )
    front_end.page.evaluate(set_widget, [int(cache), "policy.top_k_blocks", 4])
    front_end.page.wait_for_function("s => document.querySelector(s).innerText.includes('14,768')", arg=PANEL)
    front_end.page.evaluate(set_widget, [int(cache), "policy.sink_frames", 4])
    front_end.page.wait_for_function("s => document.querySelector(s).innerText.includes('sink_frames is 4')", arg=PANEL)
    front_end.page.evaluate(set_widget, [int(cache), "policy", "Sliding window (Self-Forcing)"])
    front_end.page.wait_for_function("s => document.querySelector(s).innerText.includes('32,760')", arg=PANEL)
    assert front_end.problems == []


def test_the_panel_plans_what_the_sampler_says(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    graph, cache, _ = small_render(files, 3.0, "1000, 500", 32)
    show(front_end, graph)
    planned = panel_text(front_end)
    entry = comfy.client.run(graph.prompt)
    (sampler,) = [out["text"][0] for out in entry["outputs"].values() if "attends" in str(out.get("text"))]
    print(planned, "|", sampler)
    tokens = sampler.split("attends to at most ")[1].split(" tokens")[0]
    assert f"{tokens} tokens" in planned
    body = {"cache": graph.prompt[cache]["inputs"], "sampler": inputs_of(graph, "PackForcingSampler"), "model": {}}
    body["model"] = inputs_of(graph, "PackForcingModelLoader")
    before, peak, disk = comfy.client.post("/packforcing/window", body)["text"].split(" | ")[-3:]
    assert f"{before} | peak about " in sampler
    assert f" | {disk}" in sampler
    assert peak.endswith(" without the VAE")


def inputs_of(graph: Graph, kind: str) -> dict:
    (found,) = [node["inputs"] for node in graph.prompt.values() if node["class_type"] == kind]
    return {name: value for name, value in found.items() if not isinstance(value, list)}


@pytest.mark.parametrize("nodes", ["classic", pytest.param("vue", marks=pytest.mark.long)])
def test_while_it_renders_the_panel_follows_and_the_preview_moves(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    steps = ", ".join(str(1000 - 60 * i) for i in range(16))
    graph, _, film = small_render(files, 3.6, steps, 33 + NODES_LIKE[nodes], width=192, height=96)
    show(front_end, graph, NODES_LIKE[nodes])
    page = front_end.page
    page.evaluate(LISTEN)
    with page.expect_response("**/api/prompt") as answer:
        page.get_by_test_id("queue-button").click()
    prompt_id = answer.value.json()["prompt_id"]
    page.wait_for_function("window.seen.includes('frame')")
    shots, changed = [lower_half_of_node(front_end, film)], []
    while len(changed) < 2 and comfy.client.get(f"/history/{prompt_id}") == {}:
        page.wait_for_timeout(120)
        shots.append(lower_half_of_node(front_end, film))
        shots[-1].save(tmp_path / f"{nodes}-{len(shots)}.png")
        box = ImageChops.difference(*shots[-2:]).getbbox()
        changed += [box] if box else []
    entry = comfy.client.wait(prompt_id)
    page.wait_for_function(r"s => /block\s+[45]\s+\/\s+5/.test(document.querySelector(s).innerText)", arg=PANEL)
    during = panel_text(front_end)
    seen = page.evaluate("window.seen")
    frames_per_block = seen.count("frame") / sum(1 for item in seen if item != "frame")
    print(tmp_path, during, f"| {frames_per_block:.1f} previews a block | changed {changed}")
    assert entry["status"]["status_str"] == "success"
    assert any(f"block {number} / 5" in during for number in (4, 5))
    assert "most selected blocks: 2" in during
    assert frames_per_block > 2
    assert len(changed) >= 2, "the preview moved while the video was made"
    assert front_end.problems == []


SHOW_NODE = """type => {
    const canvas = window.app.canvas, page = canvas.canvas.getBoundingClientRect();
    window.app.rootGraph.clear();
    Object.assign(canvas.ds, { scale: 1, offset: [0, 0] });
    const node = window.LiteGraph.createNode(type);
    node.pos = [200, 300];
    window.app.rootGraph.add(node);
    return { x: page.x + 300, y: page.y + 285 };
}"""


def open_help(front_end: FrontEnd, node: str, title: str) -> str:
    """Adds a node, opens its help as the button over a selected node does, and returns the page's text.

    `title` is what that page has in it: until it is there, another node's page may be.
    """
    page = front_end.page
    button = page.get_by_test_id("info-button")
    for _ in range(20):  # A page that is still settling moves the node away from the click.
        at = page.evaluate(SHOW_NODE, node)
        page.wait_for_timeout(200)
        page.mouse.click(at["x"], at["y"])
        page.wait_for_timeout(200)
        if button.is_visible():
            break
    button.click()
    page.locator(".node-help-content h1").first.wait_for()
    page.locator(".node-help-content", has_text=title).wait_for()
    return page.locator(".node-help-content").inner_text()


@pytest.mark.long
def test_every_nodes_help_opens_in_english_and_in_chinese(comfy: ComfyServer, front_end: FrontEnd, tmp_path: Path):
    chinese = read_json(LOCALES / "zh" / "nodeDefs.json")
    nodes = our_nodes(comfy)
    for node, info in nodes.items():
        text = open_help(front_end, node, info["display_name"])
        print(node, len(text), text[:60].replace("\n", " "))
        assert info["display_name"] in text
        assert len(text) > 300
    choose(front_end, "Comfy.Locale", "zh")
    front_end.open()
    for node, words in chinese.items():
        text = open_help(front_end, node, words["display_name"])
        print(node, len(text), text[:60].replace("\n", " "))
        assert words["display_name"] in text
    front_end.screenshot(tmp_path / "help.png")
    print(tmp_path)
    ours = [problem for problem in front_end.problems if "/en.md" not in problem]  # looked for before NODE.md
    assert ours == []


def test_in_chinese_nodes_widgets_and_panel_are_chinese(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    graph, _, _ = small_render(files, 30.0, "1000, 500", 35, width=832, height=480)
    choose(front_end, "Comfy.Locale", "zh")
    front_end.open()
    show(front_end, graph, vue=True)
    drawn = panel_text(front_end)
    shown = front_end.page.locator("body").inner_text()
    front_end.screenshot(tmp_path / "zh.png")
    print(tmp_path, drawn)
    words = read_json(LOCALES / "zh" / "main.json")["packforcing"]
    nodes = read_json(LOCALES / "zh" / "nodeDefs.json")
    assert words["in_view"] in drawn
    assert words["recent"] in drawn
    assert nodes["PackForcingKVCache"]["display_name"] in shown
    assert nodes["PackForcingKVCache"]["inputs"]["policy_top_k_blocks"]["name"] in shown
    assert nodes["PackForcingSampler"]["inputs"]["seconds"]["name"] in shown
    assert front_end.problems == []


def test_a_saved_workflow_keeps_its_values_with_the_panel(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    """The panel is a widget without a value: what is saved goes by position."""
    graph, cache, _ = small_render(files, 3.0, "1000, 500", 36)
    show(front_end, graph)
    panel_text(front_end)
    saved = front_end.page.evaluate("() => window.app.rootGraph.serialize()")
    front_end.load(saved)
    drawn = front_end.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    (values,) = [node["widgets_values"] for node in saved["nodes"] if node["type"] == "PackForcingKVCache"]
    print(values)
    assert len(values) == len(graph.prompt[cache]["inputs"])
    assert drawn[cache]["inputs"] == graph.prompt[cache]["inputs"]
    assert front_end.problems == []
