"""What nodes say, in the real front end: lines, text boxes, errors."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from packforcing_core.folder.manifest import NAME as MANIFEST
from tests.comfyui.browser import FrontEnd, until
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, stream
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import NODES_LIKE, choose, show, small_render, stock_settings
from tests.comfyui.test_monitor import CALLS, held, small_video

__all__ = ["stock_settings"]  # It is a fixture here too.
pytestmark = pytest.mark.browser

SAID = ".packforcing-monitor > .said"
WORDS_ON_LINES = """where => [...document.querySelectorAll(where)].filter(said => said.innerText).map(said => {
    const lines = [];
    const walker = document.createTreeWalker(said, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode())
        for (const word of node.data.matchAll(/\\S+/g)) {
            const range = document.createRange();
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            lines.push([word[0], new Set([...range.getClientRects()].map(rect => Math.round(rect.top))).size]);
        }
    return { text: said.innerText, lines, height: said.clientHeight, wanted: said.scrollHeight };
})"""


ALL_SAID = """where => {
    const said = [...document.querySelectorAll(where)].map(said => said.innerText).join("\\n");
    const parts = ["output/video/", "other unfinished", "no trained compressor", "Self-Forcing, blocks"];
    return parts.every(part => said.includes(part));
}"""


OF_OTHER_COLOUR = """where => [...document.querySelectorAll(where)].flatMap(said =>
    [...said.children].filter(line => getComputedStyle(line).color !== getComputedStyle(said).color)
        .map(line => line.innerText))"""
FORGETS = "Using RAM pressure cache"
"""ComfyUI's log when its executor has been reset."""


def forget(comfy: ComfyServer, front_end: FrontEnd) -> None:
    """Makes ComfyUI forget all results, and waits until it has. Its worker does not hear a request that comes between
    two of its waits, so it is told again.
    """
    before = comfy.log_text().count(FORGETS)
    for _ in range(60):
        comfy.client.free()
        with suppress(TimeoutError):
            until(front_end, lambda: comfy.log_text().count(FORGETS) > before, timeout=5)
            return
    pytest.fail("ComfyUI did not forget")


@pytest.mark.quick
def test_what_nodes_say_breaks_between_words_and_nine_lines_are_seen(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    graph, *_ = small_render(files, 3.0, "1000, 500", 37)
    unfinished = comfy.output / "packforcing" / "unfinished"  # Its folder's long name is said.
    unfinished.mkdir(parents=True)
    (unfinished / MANIFEST).write_text("{}", encoding="utf-8")
    show(front_end, graph)
    forget(comfy, front_end)  # What the server has from an earlier test would say nothing.
    front_end.run()
    shutil.rmtree(unfinished)
    front_end.page.wait_for_function(ALL_SAID, arg=SAID)
    front_end.show_all()
    front_end.screenshot(tmp_path / "said.png")
    said = front_end.page.evaluate(WORDS_ON_LINES, SAID)
    print(tmp_path)
    for one in said:
        print(one["height"], one["wanted"], one["text"])
    words = [word for one in said for word in one["lines"]]
    assert len(words) > 30
    # A hyphen is a place to break at.
    assert [word for word, lines in words if lines > 1 and len(word) < 25 and "-" not in word] == []
    assert all(one["height"] >= min(one["wanted"], 9 * 16) for one in said)
    assert front_end.problems == []


PROMPT_BOX = """id => {
    const node = window.app.rootGraph.getNodeById(id);
    const box = [...document.querySelectorAll('textarea')].find(box => box.value === node.widgets[0].value);
    const drawn = document.querySelector(`[data-node-id="${id}"]`); // Nodes 2.0
    return { node: Math.round(drawn?.offsetHeight ?? node.size[1]), box: box.offsetHeight };
}"""


@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_what_was_said_of_a_prompt_leaves_its_text_box_as_tall_and_goes(
    comfy: ComfyServer, front_end: FrontEnd, nodes: str, tmp_path: Path
):
    graph = Graph()
    models = graph.add("PackForcingDemoModels", checkpoint="PackForcing miniature", weight_dtype="default")
    prompt = graph.add("CLIPTextEncode", clip=models[1], text="a red walrus")
    graph.add("PreviewAny", source=prompt[0])
    show(front_end, graph, NODES_LIKE[nodes])
    node = int(prompt.id)
    front_end.page.evaluate("id => window.app.rootGraph.getNodeById(id).setSize([360, 160])", node)
    front_end.show_all()
    front_end.page.wait_for_timeout(300)
    at_first = front_end.page.evaluate(PROMPT_BOX, node)
    said = "where => [...document.querySelectorAll(where)].some(said => said.innerText.includes('walrus'))"
    sizes = []
    for text, not_seen in (("a red walrus", ""), ("a red circle", "!"), ("a walrus", ""), ("a circle", "!")):
        set_text = "([id, text]) => { window.app.rootGraph.getNodeById(id).widgets[0].value = text; }"
        front_end.page.evaluate(set_text, [node, text])
        front_end.run()
        front_end.page.wait_for_function(f"where => {not_seen}({said})(where)", arg=SAID)
        front_end.page.wait_for_timeout(300)  # Widgets are placed in the frame that follows.
        sizes.append(front_end.page.evaluate(PROMPT_BOX, node))
        front_end.screenshot(tmp_path / f"said-{len(sizes)}.png")
    print(nodes, tmp_path, at_first, sizes)
    told, quiet = sizes[::2], sizes[1::2]
    assert all(size["node"] > at_first["node"] + 16 for size in told)
    assert all(abs(size["node"] - at_first["node"]) <= 6 for size in quiet)
    assert all(abs(size["box"] - at_first["box"]) <= 6 for size in (sizes if nodes == "classic" else quiet))
    assert all(size["box"] > 0.6 * at_first["box"] for size in told)  # Nodes 2.0 share new room among all rows.
    assert front_end.problems == []


SHOWN = """where => [...document.querySelectorAll(where)].filter(said => said.innerText.includes('walrus'))
    .map(said => ({ height: said.clientHeight, wanted: said.scrollHeight, cut: said.classList.contains('cut') }))[0]"""


WORDS_OF_DEMO = """where => [...document.querySelectorAll(where)]
    .some(said => said.innerText.includes('words: a, and, ') && said.offsetWidth > 0)"""


PUT_BELOW = """([id, other, gap]) => {
    const [node, below] = [id, other].map(number => window.app.rootGraph.getNodeById(number));
    below.pos = [node.pos[0], node.pos[1] + node.size[1] + gap];
    window.app.canvas.setDirty(true, true);
}"""
TALLER = """id => {
    const node = window.app.rootGraph.getNodeById(id);
    node.setSize([node.size[0], node.size[1] + 250]);
    window.app.canvas.setDirty(true, true);
}"""


@pytest.mark.parametrize("gap", [70, 900])
def test_a_message_that_is_cut_fades_and_gets_the_height_that_its_node_is_given(
    comfy: ComfyServer, front_end: FrontEnd, tmp_path: Path, gap: int
):
    """Above another node it is cut; where there is room below, the node grows."""
    graph = Graph()
    models = graph.add("PackForcingDemoModels", checkpoint="PackForcing miniature", weight_dtype="default")
    unknown = " ".join(f"walrus{number}{'a' * 20}" for number in range(12))
    prompt = graph.add("CLIPTextEncode", clip=models[1], text=f"{unknown} {gap}")
    preview = graph.add("PreviewAny", source=prompt[0])
    show(front_end, graph)
    front_end.page.evaluate(PUT_BELOW, [int(prompt.id), int(preview.id), gap])
    front_end.page.wait_for_function(WORDS_OF_DEMO, arg=SAID)
    front_end.run()
    page, shown = front_end.page, f"({SHOWN})"
    page.wait_for_function(f"([where, cut]) => {shown}(where)?.cut === cut", arg=[SAID, gap < 100])
    front_end.screenshot(tmp_path / "cut.png")
    first = page.evaluate(SHOWN, SAID)
    page.evaluate(TALLER, int(prompt.id))
    page.wait_for_function(f"where => {shown}(where)?.cut === false", arg=SAID)
    last = page.evaluate(SHOWN, SAID)
    front_end.screenshot(tmp_path / "whole.png")
    print(tmp_path, first, last)
    assert (first["height"] < first["wanted"] - 16) == (gap < 100)
    assert last["height"] >= last["wanted"] - 2
    assert front_end.problems == []


@pytest.mark.parametrize("nodes", [pytest.param("classic", marks=pytest.mark.quick), "vue"])
def test_why_a_node_failed_takes_the_place_of_what_it_said_before_and_the_old_video_is_said_to_be_old(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph = Graph()
    models = graph.add("PackForcingDemoModels", checkpoint="PackForcing miniature", weight_dtype="default")
    prompt = graph.add("CLIPTextEncode", clip=models[1], text="a red circle")
    timed = {"clip": models[1], "prefix": "", "blend_seconds": 0.0, "recache": False}
    timeline = graph.add("PackForcingTimedPrompts", timeline="[0s] a red circle\n[2s] a blue circle", **timed)
    graph.add("PreviewAny", source=prompt[0])
    latents = stream(graph, models[0], seconds=0.5, width=128, height=64, seed=40 + NODES_LIKE[nodes])
    graph.prompt[latents[0]]["inputs"]["positive"] = timeline[0]
    film = decode(graph, latents, files)
    graph.prompt[film.id]["inputs"]["vae"] = models[2]
    show(front_end, graph, NODES_LIKE[nodes])
    front_end.run()
    says = "([where, words]) => [...document.querySelectorAll(where)].some(said => said.innerText.includes(words))"
    front_end.page.wait_for_function(says, arg=[SAID, "2 s: a blue circle"])
    set_prefix = "([id, text]) => { window.app.rootGraph.getNodeById(id).widgets[1].value = text; }"
    front_end.page.evaluate(set_prefix, [int(timeline.id), "a red circle " * 9])
    front_end.page.wait_for_function(says, arg=[SAID, "Of the run before your change:\n0 s: "])
    assert front_end.run()["status"]["status_str"] == "error"
    for _ in ("after the run", "after a reload"):
        front_end.page.wait_for_function(says, arg=[SAID, "Error: "])
        front_end.page.wait_for_function(says, arg=[SAID, "This video is of the job before."])
        print(*front_end.page.locator(SAID).all_inner_texts(), sep="\n")
        assert front_end.page.evaluate(says, [SAID, "30 words"])
        assert front_end.page.evaluate(says, [SAID, 'The last job failed at "'])
        assert front_end.page.evaluate(says, [SAID, "output/video/"]), "its file is still named"
        assert not front_end.page.evaluate(says, [SAID, "2 s: a blue circle"])
        lines = "\n".join(front_end.page.locator(SAID).all_inner_texts()).splitlines()
        warnings = [line for line in lines if line.startswith(("Warning: ", "Error: ", "The last job "))]
        assert sorted(front_end.page.evaluate(OF_OTHER_COLOUR, SAID)) == sorted(warnings)
        front_end.screenshot(tmp_path / "failed.png")
        front_end.page.reload()
    front_end.page.wait_for_function(says, arg=[SAID, "Error: "])
    front_end.page.evaluate(set_prefix, [int(timeline.id), "a red"])
    front_end.run()
    front_end.page.wait_for_function(says, arg=[SAID, "2 s: a red a blue circle"])
    assert not front_end.page.evaluate(says, [SAID, "This video is of the job before."])


SET_SINK = """([id, frames]) => {
    const { widgets } = window.app.rootGraph.getNodeById(id);
    widgets.find(widget => widget.name.endsWith('sink_frames')).value = frames;
}"""


def test_a_change_before_a_node_makes_what_it_said_outdated_and_so_after_a_reload(
    comfy: ComfyServer, front_end: FrontEnd, files: Files
):
    graph, cache, _ = small_render(files, 3.0, "1000, 500", 38)
    show(front_end, graph)
    front_end.run()
    past = f"[...document.querySelectorAll('{SAID}.past')].map(said => said.innerText)"
    front_end.page.wait_for_function(f"document.querySelectorAll('{SAID}').length > 1")
    front_end.page.wait_for_timeout(1500)  # The page looks every half second.
    assert front_end.page.evaluate(past) == []
    front_end.page.evaluate(SET_SINK, [int(cache), 4])
    front_end.page.wait_for_function(f"() => {past}.length > 0")
    said = front_end.page.evaluate(past)
    front_end.page.evaluate("window.app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    front_end.page.wait_for_timeout(3000)  # The front end saves what is open a moment later.
    front_end.page.reload()
    front_end.page.wait_for_function(f"count => {past}.length === count", arg=len(said))
    reloaded = front_end.page.evaluate(past)
    front_end.page.evaluate(SET_SINK, [int(cache), 3])
    front_end.page.wait_for_function(f"() => !{past}.length")
    print(said, reloaded, sep="\n")
    assert said == reloaded
    assert all(text.startswith("Of the run before your change:") or "\nOf the run" in text for text in said)
    assert front_end.problems == []


RANDOMIZE = """id => {
    const { widgets } = window.app.rootGraph.getNodeById(id);
    widgets.find(widget => widget.options?.values?.includes?.('randomize')).value = 'randomize';
}"""


def test_a_seed_that_changes_itself_makes_nothing_outdated(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    graph, *_ = small_render(files, 1.0, "1000", 40)
    (sampler,) = (node["inputs"] for node in graph.prompt.values() if node["class_type"] == "PackForcingSampler")
    graph.prompt["99"] = {"class_type": "PrimitiveInt", "inputs": {"value": 5}}
    sampler["seed"] = ["99", 0]
    show(front_end, graph)
    front_end.page.evaluate(RANDOMIZE, 99)
    before = front_end.page.evaluate("window.app.rootGraph.getNodeById(99).widgets[0].value")
    front_end.run()
    front_end.page.wait_for_function(f"document.querySelectorAll('{SAID}').length > 1")
    front_end.page.wait_for_timeout(1500)  # The page looks every half second.
    after = front_end.page.evaluate("window.app.rootGraph.getNodeById(99).widgets[0].value")
    assert before != after
    assert front_end.page.locator(f"{SAID}.past").count() == 0
    assert front_end.problems == []


def test_in_chinese_what_nodes_say_is_chinese_while_they_run_and_when_they_have(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    graph, _ = small_video(files, 3.0, 39)
    choose(front_end, "Comfy.Locale", "zh")
    front_end.open()
    show(front_end, graph)
    all_said = f"[...document.querySelectorAll('{SAID}')].flatMap(said => said.innerText.split('\\n')).filter(Boolean)"
    with held(comfy, CALLS) as allow:
        prompt = press_run(front_end)
        front_end.page.wait_for_function(f"() => {all_said}.some(line => /^\u5757 1\\/4/.test(line))")
        front_end.screenshot(tmp_path / "running.png")
        running = front_end.page.evaluate(all_said)
        allow(4 * CALLS)
    comfy.client.wait(prompt)
    front_end.page.wait_for_function(f"() => {all_said}.some(line => line.startsWith('\u6e32\u67d3 auto-'))")
    front_end.screenshot(tmp_path / "done.png")
    done = front_end.page.evaluate(all_said)
    print(tmp_path, *running, *done, sep="\n")
    assert len(done) > 5
    assert [line for line in running + done if not re.search("[\u4e00-\u9fff]", line) and "output/" not in line] == []
    assert front_end.problems == []
