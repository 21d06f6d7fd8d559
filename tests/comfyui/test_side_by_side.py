"""A stack of videos in the real front end: it shows what folded nodes make, then the result, and what they warn of."""

from __future__ import annotations

from pathlib import Path

import pytest

from packforcing_core.video import probe
from tests.comfyui.browser import FrontEnd
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import NODES_LIKE, choose, show
from tests.comfyui.test_monitor import CALLS, HOLD, held, wait_for
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

CAPTIONS = "first\n\u6ed1\u52a8\u7a97\u53e3 \uae30"
FOLD = """([ids, folded]) => ids.forEach(id => {
    const node = window.app.rootGraph.getNodeById(id);
    if (Boolean(node.flags.collapsed) !== folded) node.collapse();
})"""
STATE = """id => {
    const node = window.app?.rootGraph?.getNodeById(id); // Not yet there while the page loads.
    const monitor = node?.widgets?.find(widget => widget.name === 'packforcing_monitor')?.element;
    const shown = element => Boolean(element) && element.offsetWidth > 0;
    const cells = [...monitor?.querySelectorAll('.cell') ?? []].map(cell => ({
        title: cell.querySelector('.title').textContent, width: cell.offsetWidth,
        waits: shown(cell.querySelector('.waiting')) ? cell.querySelector('.waiting').textContent : '',
        plays: shown(cell.querySelector('video')) && cell.querySelector('video').readyState >= 2,
        paused: cell.querySelector('video')?.paused ?? true, end: cell.querySelector('video')?.duration || 0,
        src: cell.querySelector('video')?.src ?? '' }));
    const made = monitor?.querySelector('.bar > div').style.width;
    return { cells, made, said: monitor?.querySelector('.said').textContent ?? '' };
}"""


def side_by_side(files: Files, seed: int) -> tuple[Graph, list[str], list[str], str]:
    """A graph that combines two videos of 4.5 s; the ids of its samplers, of the nodes that make the videos, and of the
    stack.
    """
    graph = Graph()
    model = graph.add("PackForcingTestHold", model=our_loader(graph, files), file=HOLD)[0]
    settings = {"seconds": 4.5, "timesteps": "1000", "width": 96, "height": 64, "frames_per_block": 3}
    latents = [stream(graph, model, seed=seed + video, **settings) for video in range(2)]
    graph.prompt[latents[1][0]]["inputs"]["frames_per_block"] = 4
    made = [decode(graph, each, files, blocks_per_segment=1) for each in latents]
    stacked = {"captions": CAPTIONS, "filename_prefix": "video/stack", "codec": "h264"}
    stack = graph.add("PackForcingStackVideos", video_1=made[0][0], video_2=made[1][0], **stacked)
    return graph, [each[0] for each in latents], [each.id for each in made], stack.id


NEW_SEEDS = """() => window.app.rootGraph.nodes.flatMap(node => node.widgets ?? [])
    .filter(widget => widget.name === 'seed').forEach(widget => { widget.value += 100; })"""
HAS_OLD = f"id => ({STATE})(id).cells.some(cell => cell.title.includes('of the job before'))"


def while_it_is_made_again(comfy: ComfyServer, front_end: FrontEnd, stack: int) -> dict:
    """The state of the stack when the first of its videos has begun again and the other is still the old one."""
    front_end.page.evaluate(NEW_SEEDS)
    with held(comfy):
        prompt = press_run(front_end)
        wait_for(front_end, HAS_OLD, stack)
        state = front_end.page.evaluate(STATE, stack)
    comfy.client.wait(prompt)
    assert state["made"] == "0%", "the other video is of the job before"
    assert sum("(of the job before): " in line for line in state["said"].splitlines()) == 1
    return state


PLAYS_ITS_OWN = f"""id => {{
    const [cell] = ({STATE})(id).cells;
    return cell?.plays && !cell.paused && cell.src.includes('stack');
}}"""


def when_the_stack_plays(front_end: FrontEnd, stack: int, folded: list[int], reloaded: bool) -> dict:
    """The state of the stack with its own video and what the folded nodes say, after a reload of the page or not."""
    if reloaded:
        front_end.page.reload()
        # The front end does not always keep for a reload what a script has folded.
        wait_for(front_end, "ids => ids.every(id => window.app?.rootGraph?.getNodeById(id))", folded)
        front_end.page.evaluate(FOLD, [folded, True])
    wait_for(front_end, PLAYS_ITS_OWN, stack)
    wait_for(front_end, f"id => ({STATE})(id).said.split('KV cache ').length === 3", stack)
    return front_end.page.evaluate(STATE, stack)


@pytest.mark.parametrize("nodes", [pytest.param("classic", marks=pytest.mark.quick), "vue"])
def test_folded_nodes_videos_play_in_the_stack_and_then_the_stack_does(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph, samplers, made, stack = side_by_side(files, 601 + 2 * NODES_LIKE[nodes])
    show(front_end, graph, NODES_LIKE[nodes])
    folded = [int(id) for id in (*samplers, *made)]
    front_end.page.evaluate(FOLD, [folded, True])

    def state() -> dict:
        return front_end.page.evaluate(STATE, int(stack))

    with held(comfy) as allow:
        prompt = press_run(front_end)
        allow(4 * CALLS)
        wait_for(front_end, f"id => ({STATE})(id).cells.some(cell => cell.plays && cell.end > 1.2)", int(stack))
        during = state()
        front_end.screenshot(tmp_path / f"{nodes}-during.png")
        playing = next(number for number, cell in enumerate(during["cells"]) if cell["plays"])
        front_end.page.evaluate(FOLD, [[int(made[playing])], False])
        elsewhere = "([id, n, text]) => (%s)(id).cells[n]?.waits === text"
        wait_for(front_end, elsewhere % STATE, [int(stack), playing, "Shown on its own node."])
        one_open = state()
        front_end.page.evaluate(FOLD, [[int(made[1 - playing])], False])
        wait_for(front_end, f"id => ({STATE})(id).cells.length === 0", int(stack))
        opened = front_end.page.evaluate(f"ids => ids.map({STATE})", [int(id) for id in made])
        front_end.page.evaluate(FOLD, [[int(id) for id in made], True])
    video = film_of(comfy, comfy.client.wait(prompt), stack)
    states = []
    for reloaded in (False, True):
        states.append(when_the_stack_plays(front_end, int(stack), folded, reloaded))
        front_end.screenshot(tmp_path / f"{nodes}-after.png")
    again = while_it_is_made_again(comfy, front_end, int(stack))
    print(tmp_path, during, opened, *states, again, sep="\n")
    choose(front_end, "Comfy.VueNodes.Enabled", False)

    assert [cell["title"] for cell in during["cells"]] == CAPTIONS.split("\n")
    assert one_open["cells"][1 - playing]["waits"] == "Not begun yet."
    assert "left | " in one_open["said"]
    assert [cell["waits"] for cell in during["cells"] if not cell["plays"]] == ["Not begun yet."]
    assert min(cell["width"] for cell in during["cells"]) > 0.4 * max(cell["width"] for cell in during["cells"])
    assert "left | " in during["said"]
    assert sorted(bool(one["cells"]) for one in opened) == [False, True], "an open node shows its own video"
    assert (probe(video).width, probe(video).height) == (192, 64 + 32)
    for after in states:
        assert [cell["title"] for cell in after["cells"]] == [""]
        assert abs(after["cells"][0]["end"] - probe(video).duration) < 0.01
        assert f"output/video/{video.name}" in after["said"]
        for caption in CAPTIONS.split("\n"):
            (line,) = (line for line in after["said"].splitlines() if line.startswith(f"{caption}: "))
            assert "s per block | KV cache " in line.replace("\u00a0", " ").replace(", KV cache", " | KV cache")
        assert "Warning: the font of the captions does not have these letters: \uae30" in after["said"]
    warnings = [line for line in states[0]["said"].splitlines() if "trained with blocks of 3" in line]
    assert len(warnings) == 1, "of the folded sampler"
    assert "Warning: " in warnings[0]
    assert not warnings[0].startswith("Warning"), "the folded node is named"
    assert front_end.problems == []
