"""The monitor on the decode node, in the real front end: it plays what is there, and stays after the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packforcing_core.video import probe
from tests.comfyui.browser import PAGE_TIMEOUT_S, FrontEnd
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_demo_front_end import NODES_OF, SET, press_run
from tests.comfyui.test_front_end import NODES_LIKE, choose, show
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

SEEN = """() => {
    const node = window.app.rootGraph.nodes.find(n => n.type === 'PackForcingStreamingVAEDecode');
    const monitor = node?.widgets.find(w => w.name === 'packforcing_monitor')?.element;
    const video = monitor?.querySelector('video');
    return { said: monitor?.querySelector('.said').textContent ?? '', on_page: monitor?.isConnected ?? false,
             src: video?.src ?? '', now: video?.currentTime ?? 0, end: video?.duration || 0,
             paused: video?.paused ?? true, videos: document.querySelectorAll('video').length };
}"""
VIDEO = "document.querySelector('.packforcing-monitor video')"
WAITING = "document.querySelector('.packforcing-monitor .waiting')"
FIRST_PICTURE = "The first image appears here as soon as a block is decoded."
SAID_BELOW = "document.querySelector('.packforcing-monitor:has(video) > .said')"
PLAYS = f"end => {VIDEO}?.readyState >= 2 && {VIDEO}.offsetWidth > 0 && {VIDEO}.duration > end"
FINISHED = (
    f"name => {PLAYS.replace('end =>', '')} && new URL({VIDEO}.src).searchParams.get('filename') === name".replace(
        "> end", "> 0"
    )
)


HOLD = "hold"
CALLS = 2
"""Of the model for a block of one step: the step, and the pass that writes the cache."""


def small_video(files: Files, seconds: float, seed: int, steps: str = "1000", **settings: Any) -> tuple[Graph, str]:
    """A graph whose video has a segment for each block of 0.75 s; and the id of its decode node."""
    graph = Graph()
    model = graph.add("PackForcingTestHold", model=our_loader(graph, files), file=HOLD)[0]
    latents = stream(graph, model, seconds=seconds, timesteps=steps, seed=seed, width=96, height=64)
    return graph, decode(graph, latents, files, blocks_per_segment=1, **settings).id


@contextmanager
def held(comfy: ComfyServer, calls: int = 0) -> Iterator[Callable[[int], None]]:
    """While it lasts the job that runs, or begins, makes so many calls of its model and waits, so that it still runs
    when a slow page has seen what there is. What it yields allows so many more.
    """
    hold = comfy.output / HOLD
    written = hold.with_suffix(".new")

    def allow(more: int) -> None:
        written.write_text(str(more))
        written.replace(hold)  # At once: it is being read.

    allow(calls)
    try:
        yield allow
    finally:
        hold.unlink()


def seen(front_end: FrontEnd) -> dict[str, Any]:
    return front_end.page.evaluate(SEEN)


def wait_for(front_end: FrontEnd, condition: str, argument: Any = 0) -> None:
    front_end.page.wait_for_function(condition, arg=argument)


SET_SEED = """seed => window.app.rootGraph.nodes.filter(n => n.type === 'PackForcingSampler').forEach(
    node => { node.widgets.find(w => w.name === 'seed').value = seed; })"""
SLOW = ", ".join(str(1000 - 80 * i) for i in range(12))
"""So many steps that there is something to see while it runs, on a quick machine too."""


@pytest.mark.parametrize("nodes", [pytest.param("classic", marks=pytest.mark.quick), "vue"])
def test_it_plays_while_it_grows_and_is_there_at_the_end_and_after_a_reload(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph, node = small_video(files, 12.0, 501 + NODES_LIKE[nodes])
    show(front_end, graph, NODES_LIKE[nodes])
    with held(comfy) as allow:
        prompt = press_run(front_end)
        wait_for(front_end, f"text => {WAITING}?.offsetWidth > 0 && {WAITING}.textContent === text", FIRST_PICTURE)
        front_end.screenshot(tmp_path / f"{nodes}-waiting.png")
        allow(4 * CALLS)
        wait_for(front_end, PLAYS, 1.2)  # Two segments.
        first = seen(front_end)
        assert not front_end.page.evaluate(f"{WAITING}.offsetWidth")
        wait_for(front_end, f"() => {VIDEO}.paused && {VIDEO}.duration - {VIDEO}.currentTime < 0.3")  # No spinner.
        front_end.page.evaluate(f"{VIDEO}.currentTime = 0")
        allow(4 * CALLS)
        wait_for(front_end, PLAYS, max(2.5, first["end"]))
        wait_for(front_end, f"() => {VIDEO}.currentTime > 0.9")
        front_end.screenshot(tmp_path / f"{nodes}-running.png")
        running = comfy.client.get(f"/history/{prompt}") == {}
        during = seen(front_end)

        front_end.page.reload()  # In mid-render.
        wait_for(front_end, PLAYS, 2.5)
        reloaded, still = seen(front_end), comfy.client.get(f"/history/{prompt}") == {}

    video = film_of(comfy, comfy.client.wait(prompt), node)
    wait_for(front_end, FINISHED, video.name)
    after = seen(front_end)
    front_end.screenshot(tmp_path / f"{nodes}-done.png")
    front_end.page.reload()
    wait_for(front_end, FINISHED, video.name)
    again = seen(front_end)
    print(tmp_path, first, during, reloaded, after, again, sep="\n")
    assert running
    assert still
    assert first["src"].startswith("blob:")
    assert "left" in during["said"]
    assert f"of {probe(video).frames / 16:.1f} s" in during["said"]
    assert during["end"] > first["end"]
    assert reloaded["said"].startswith("block")
    assert abs(after["end"] - probe(video).frames / 16) < 0.01
    for said in (after["said"], again["said"]):
        assert f"output/video/{video.name}" in said
        assert f"{probe(video).frames / 16:.1f} s" in said
    assert again["videos"] == 1, "the front end shows no second one"
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    assert front_end.problems == []


@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_two_tabs_of_one_graph_show_their_own_jobs(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    seed = 511 + 2 * NODES_LIKE[nodes]
    graph, node = small_video(files, 6.0, seed, SLOW)
    show(front_end, graph, NODES_LIKE[nodes])
    drawn = front_end.page.evaluate("() => window.app.rootGraph.serialize()")
    wait_for(front_end, "() => window.app.extensionManager.workflow.activeWorkflow")
    open_copy(front_end, drawn, "first")
    first_prompt = press_run(front_end)
    wait_for(front_end, PLAYS, 0.5)
    open_copy(front_end, drawn, "second")
    front_end.page.wait_for_timeout(1500)
    other = seen(front_end)
    front_end.page.evaluate(SET_SEED, seed + 1)
    second_prompt = press_run(front_end)
    first, second = (film_of(comfy, comfy.client.wait(prompt), node) for prompt in (first_prompt, second_prompt))
    wait_for(front_end, FINISHED, second.name)
    open_tab(front_end, "first")
    wait_for(front_end, FINISHED, first.name)
    back = seen(front_end)
    open_tab(front_end, "second")
    wait_for(front_end, FINISHED, second.name)
    front_end.screenshot(tmp_path / "second.png")
    print(tmp_path, other, back, seen(front_end), sep="\n")
    assert other["said"] == ""
    assert other["videos"] == 0
    assert first.name in back["said"]
    assert second.name in seen(front_end)["said"]
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    assert front_end.problems == []


def open_copy(front_end: FrontEnd, graph: dict[str, Any], name: str) -> None:
    front_end.page.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name)", [graph, name])
    front_end.page.wait_for_function(
        "name => window.app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)", arg=name
    )
    front_end.show_all()


def open_tab(front_end: FrontEnd, name: str) -> None:
    front_end.page.locator(".workflow-tab, .workflow-label").get_by_text(name).first.click()
    front_end.page.wait_for_function(
        "name => window.app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)", arg=name
    )


def test_two_browsers_never_see_each_others_jobs(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    graph, node = small_video(files, 4.5, 521, SLOW)
    show(front_end, graph)
    drawn = front_end.page.evaluate("() => window.app.rootGraph.serialize()")
    with other_browser(front_end, bypass_csp=True) as other:
        other.load(drawn)
        other.page.evaluate(SET_SEED, 522)
        first = press_run(front_end)
        wait_for(front_end, PLAYS, 0.5)
        before = seen(other)
        second = press_run(other)  # Their job waits behind this one's.
        names = [film_of(comfy, comfy.client.wait(prompt), node).name for prompt in (first, second)]
        for page, name in ((front_end, names[0]), (other, names[1])):
            wait_for(page, FINISHED, name)
        other.page.reload()
        wait_for(other, FINISHED, names[1])
        shown = [seen(page) for page in (front_end, other)]
        print(names, *shown, sep="\n")
        for one, name in zip(shown, names, strict=True):
            assert f"output/video/{name}" in one["said"]
            assert one["videos"] == 1
        assert (before["said"], before["videos"]) == ("", 0)
        assert other.problems == []
    assert front_end.problems == []


@contextmanager
def other_browser(front_end: FrontEnd, **settings: Any) -> Iterator[FrontEnd]:
    """The page of somebody else, who has the same server open."""
    context = front_end.page.context.browser.new_context(viewport={"width": 1600, "height": 900}, **settings)
    try:
        context.set_default_timeout(1000 * PAGE_TIMEOUT_S)
        other = FrontEnd(front_end.server, context.new_page())
        other.open()
        yield other
    finally:
        context.close()


@pytest.mark.parametrize("nodes", [pytest.param("classic", marks=pytest.mark.quick), "vue"])
def test_an_interrupted_video_stays_and_says_that_run_continues(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str, tmp_path: Path
):
    graph, node = small_video(files, 12.0, 531 + NODES_LIKE[nodes])
    show(front_end, graph, NODES_LIKE[nodes])
    with held(comfy, 6 * CALLS):
        prompt = press_run(front_end)
        wait_for(front_end, PLAYS, 2.0)
        wait_for(front_end, f"() => {VIDEO}.currentTime > 0.5")
        comfy.client.interrupt(prompt)
    comfy.client.wait(prompt)
    wait_for(front_end, f"() => {SAID_BELOW}?.textContent.includes('Stopped at')")
    stopped = seen(front_end)
    front_end.page.reload()
    wait_for(front_end, PLAYS, 1.2)
    wait_for(front_end, f"() => {VIDEO}.ended")  # It does not wait for more.
    front_end.screenshot(tmp_path / "stopped.png")
    reloaded = seen(front_end)
    print(tmp_path, stopped, reloaded, sep="\n")
    for state in (stopped, reloaded):
        assert "Press Run to resume" in state["said"]
        assert "The video so far: output/packforcing/" in state["said"]
    video = film_of(comfy, comfy.client.wait(press_run(front_end)), node)
    wait_for(front_end, FINISHED, video.name)
    assert "reused" in seen(front_end)["said"]
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    assert front_end.problems == []


def test_what_browsers_cannot_play_is_shown_in_frames_and_named(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    graph, node = small_video(files, 3.0, 541, SLOW, codec="h265")
    show(front_end, graph)
    prompt = press_run(front_end)
    shown = "() => document.querySelector('.packforcing-monitor img:not([hidden])')?.naturalWidth > 0"
    wait_for(front_end, shown)
    video = film_of(comfy, comfy.client.wait(prompt), node)
    wait_for(front_end, f"name => {SAID_BELOW}.textContent.includes(name)", video.name)
    front_end.page.wait_for_timeout(1500)
    front_end.screenshot(tmp_path / "h265.png")
    print(tmp_path, seen(front_end)["said"])
    assert "cannot play this codec" in seen(front_end)["said"]
    assert front_end.page.evaluate(shown), "the last frame stays"


def test_under_the_policy_of_a_server_without_api_nodes(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    """That policy refuses videos which a page has put together itself: the file as far as it is there plays."""
    graph, node = small_video(files, 12.0, 551)
    with other_browser(front_end) as page:
        show(page, graph)
        with held(comfy, 6 * CALLS):
            prompt = press_run(page)
            wait_for(page, PLAYS, 2.0)
            during, running = seen(page), comfy.client.get(f"/history/{prompt}") == {}
        video = film_of(comfy, comfy.client.wait(prompt), node)
        wait_for(page, FINISHED, video.name)
        print(during, seen(page), sep="\n")
    assert running
    assert "growing.mp4" in during["src"]


def test_a_run_that_makes_nothing_new_shows_its_video(comfy: ComfyServer, front_end: FrontEnd, files: Files):
    """All of it is in the server's cache: it only says what was made, to a page that has never seen it."""
    graph, node = small_video(files, 1.5, 561)
    show(front_end, graph)
    drawn = front_end.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    video = film_of(comfy, comfy.client.run(drawn), node)
    front_end.run()
    wait_for(front_end, FINISHED, video.name)
    print(seen(front_end)["said"])
    assert video.name in seen(front_end)["said"]
    assert seen(front_end)["videos"] == 1


@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_a_job_stopped_before_its_video_leaves_the_one_before_and_says_so(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, nodes: str
):
    graph, node = small_video(files, 1.5, 581 + NODES_LIKE[nodes])
    count = graph.add("PackForcingTestCount", steps=1, pause=0.0, fail=False)
    (text,) = (inner for inner in graph.prompt.values() if inner["class_type"] == "PackForcingTestConditioning")
    text["inputs"]["seed"] = count[0]
    show(front_end, graph, NODES_LIKE[nodes])
    video = film_of(comfy, comfy.client.wait(press_run(front_end)), node)
    wait_for(front_end, FINISHED, video.name)
    before = seen(front_end)["said"]
    for widget, value in enumerate((10_000, 0.05)):
        set_widget = "([id, n, value]) => { window.app.rootGraph.getNodeById(id).widgets[n].value = value; }"
        front_end.page.evaluate(set_widget, [int(count.id), widget, value])
    prompt = press_run(front_end)
    front_end.page.wait_for_function("id => String(window.app.runningNodeId ?? '') === id", arg=count.id)
    comfy.client.interrupt(prompt)
    comfy.client.wait(prompt)
    for reloaded in (False, True):
        if reloaded:
            front_end.page.reload()
        wait_for(front_end, f"() => {SAID_BELOW}?.textContent.includes('This video is of the job before.')")
        wait_for(front_end, FINISHED, video.name)
        after = seen(front_end)["said"]
        print(after)
        assert "The last job was stopped." in after
        assert before in after
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    assert front_end.problems == []


HELD = (
    f"() => [...Array({VIDEO}.buffered.length).keys()].map(i => [{VIDEO}.buffered.start(i), {VIDEO}.buffered.end(i)])"
)


SEGMENTS_THERE = """seconds => [...window.told.values()].some(
    ({ video }) => video?.segments?.length && video.segments.at(-1)[1] >= seconds)"""
KEEP_TOLD = """() => {
    window.told = new Map();
    const keep = ({ detail }) => window.told.set(detail.node, detail);
    window.comfyAPI.api.api.addEventListener('packforcing.monitor', keep);
}"""


def page_memory(front_end: FrontEnd) -> dict[str, float]:
    """Of the page after a garbage collection: MB of JavaScript, elements, listeners; seconds of video it holds."""
    session = front_end.page.context.new_cdp_session(front_end.page)
    session.send("HeapProfiler.collectGarbage")
    heap, counts = session.send("Runtime.getHeapUsage"), session.send("Memory.getDOMCounters")
    session.detach()
    return {
        "heap": (heap["usedSize"] + heap.get("backingStorageSize", 0)) / 1e6,
        "nodes": counts["nodes"],
        "listeners": counts["jsEventListeners"],
        "held": sum(end - start for start, end in front_end.page.evaluate(HELD)),
    }


@pytest.mark.long
def test_ten_minutes_are_rendered_and_watched_in_a_page_that_does_not_grow(
    comfy: ComfyServer, front_end: FrontEnd, tmp_path: Path
):
    """More than ten minutes are asked for, so that it still runs while the page goes back and forth in ten."""
    front_end.pick_template(comfy.pack_name, "packforcing_demo")
    page = front_end.page
    page.evaluate(SET, ["seconds", 690.0])
    page.evaluate(KEEP_TOLD)
    prompt = press_run(front_end)
    memory = {}
    for seconds in range(120, 601, 60):
        page.wait_for_function(SEGMENTS_THERE, arg=seconds, timeout=1e6)
        memory[seconds] = page_memory(front_end)
        print(seconds, memory[seconds])
    for second in (300, 30, 595):
        page.evaluate(f"second => {{ {VIDEO}.currentTime = second; }}", second)
        reaches = f"end => ({HELD})().some(([start, last]) => start <= end && end <= last)"
        wait_for(front_end, reaches, min(599, second + 80))
        page.wait_for_timeout(1500)
        memory[f"at {second}"] = page_memory(front_end)
        print(second, memory[f"at {second}"], page.evaluate(HELD))
    assert comfy.client.get(f"/history/{prompt}") == {}, "it still runs"
    front_end.screenshot(tmp_path / "ten.png")
    entry = comfy.client.wait(prompt, 1000)
    (node,) = page.evaluate(NODES_OF, "PackForcingStreamingVAEDecode")
    video = film_of(comfy, entry, node)
    wait_for(front_end, FINISHED, video.name)
    print(tmp_path, probe(video), seen(front_end))
    assert seen(front_end)["end"] > 600
    assert max(at["held"] for at in memory.values()) <= 60 + 90 + 3 * 10
    for what in ("heap", "nodes", "listeners"):
        early = max(memory[at][what] for at in (120, 180, 240))
        # The least: at one of them the browser may hold what it is about to free.
        assert min(memory[at][what] for at in (480, 540, 600)) < 1.05 * early, what
    assert front_end.problems == []
