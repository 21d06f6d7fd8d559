"""The player of the monitor by itself: the exchange of the growing file for the finished one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comfyui.browser import FrontEnd
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import show
from tests.comfyui.test_monitor import CALLS, FINISHED, PLAYS, VIDEO, held, small_video, wait_for
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

ENDS_BADLY = """async ([url, made, none]) => {
    const { Player } = await import(url);
    const wait = (condition) => new Promise(done => {
        const look = setInterval(() => condition() && (clearInterval(look), done()), 20);
    });
    const opened = async () => {
        const player = new Player();
        document.body.append(player.element);
        player.show({ finished: true, file: made, segments: [] }, false);
        await wait(() => player.playable);
        return player;
    };
    const failing = await opened();
    failing.show({ finished: true, file: none, segments: [] }, false);
    await wait(() => failing.how === 'none');
    const closed = await opened();
    closed.show({ finished: true, file: none, segments: [] }, false);
    const next = closed.next;
    closed.close();
    await new Promise(done => setTimeout(done, 300));
    failing.close();
    return [Boolean(next), next?.getAttribute('src'), closed.element.getAttribute('src'), closed.how];
}"""


def test_a_finished_file_that_fails_is_tried_in_place_and_a_closed_player_loads_nothing(
    comfy: ComfyServer, front_end: FrontEnd, files: Files
):
    graph, node = small_video(files, 1.0, 813)
    video = film_of(comfy, comfy.client.run(graph.prompt), node)
    made = {"filename": video.name, "subfolder": "video", "type": "output"}
    url = "/extensions/ComfyUI-PackForcing/player.js"
    seen = front_end.page.evaluate(ENDS_BADLY, [url, made, {**made, "filename": "none.mp4"}])
    print(seen)
    assert seen == [True, None, None, "finished"]


FINISHED_WHILE_IT_OPENS = """async (url) => {
    const { Player } = await import(url);
    const file = { filename: "none.mp4", subfolder: "", type: "output" };
    const growing = { codec: 'video/mp4; codecs="avc1.42E01E"', init: 10, segments: [[20, 1]], file };
    for (let moment = 0; moment < 40; moment++) {
        const player = new Player();
        document.body.append(player.element);
        player.show(growing, true);
        await new Promise((resolve) => setTimeout(resolve, moment / 8));
        player.show({ finished: true, file, segments: [] }, false);
        await new Promise((resolve) => setTimeout(resolve, 20));
        player.close();
    }
}"""


@pytest.mark.quick
def test_a_video_that_ends_while_its_player_opens_is_no_error(front_end: FrontEnd):
    """Ended at forty moments around the browser's answer to the opening; the file itself is none."""
    front_end.page.evaluate(FINISHED_WHILE_IT_OPENS, "/extensions/ComfyUI-PackForcing/player.js")
    assert [problem for problem in front_end.problems if problem.startswith("uncaught")] == []


WATCH_FOR_BLACK = f"""() => {{
    window.looked = window.black = 0;
    const look = () => {{
        window.looked += 1;
        window.black += !({VIDEO}?.readyState >= 2 && {VIDEO}.offsetWidth > 0);
        const finished = Boolean({VIDEO}) && !{VIDEO}.src.startsWith("blob:");
        if (!finished) window.last = {VIDEO}?.currentTime;
        else window.first ??= {VIDEO}.currentTime;
        requestAnimationFrame(look);
    }};
    look();
}}"""


def test_the_finished_video_takes_the_place_of_the_growing_one_without_a_black_moment(
    comfy: ComfyServer, front_end: FrontEnd, files: Files
):
    graph, node = small_video(files, 6.0, 811)
    show(front_end, graph)
    with held(comfy, 3 * CALLS) as allow:
        prompt = press_run(front_end)
        wait_for(front_end, PLAYS, 1.2)
        front_end.page.evaluate(WATCH_FOR_BLACK)
        front_end.page.evaluate(f"() => {{ {VIDEO}.volume = 0.25; }}")
        allow(2 * CALLS)
        wait_for(front_end, PLAYS, 2.5)
    video = film_of(comfy, comfy.client.wait(prompt), node)
    wait_for(front_end, FINISHED, video.name)
    front_end.page.wait_for_timeout(700)  # The nodes look every half second.
    looked, black, last, first, volume = front_end.page.evaluate(
        f"[window.looked, window.black, window.last, window.first, {VIDEO}.volume]"
    )
    print(f"black in {black} of {looked} frames of the page; at {last:.2f} s before, at {first:.2f} s after")
    assert looked > 20
    assert black == 0
    assert abs(first - last) < 1
    assert volume == 0.25
    assert front_end.page.evaluate("document.querySelectorAll('video').length") == 1
    assert front_end.problems == []


SET_SIZE = """([width, height]) => {
    const sampler = window.app.rootGraph.nodes.find(node => node.type === 'PackForcingSampler');
    for (const [name, value] of [['width', width], ['height', height]])
        sampler.widgets.find(widget => widget.name === name).value = value;
}"""
HEIGHT = "id => window.app.rootGraph.getNodeById(id).size[1]"
PAST = ".packforcing-monitor:has(video) > .said.past"


def test_a_node_is_as_tall_as_its_video_needs_and_says_that_settings_have_changed_since(
    comfy: ComfyServer, front_end: FrontEnd, files: Files, tmp_path: Path
):
    """A portrait gets a square: more would cover the nodes below."""
    graph, node = small_video(files, 1.0, 812)
    show(front_end, graph)
    width = front_end.page.evaluate(HEIGHT.replace("[1]", "[0]"), int(node))
    heights = []
    for size in ((96, 64), (64, 128), (96, 64)):
        front_end.page.evaluate(SET_SIZE, size)
        if heights:
            front_end.page.wait_for_selector(PAST, state="attached")
        video = film_of(comfy, comfy.client.wait(press_run(front_end)), node)
        wait_for(front_end, FINISHED, video.name)
        front_end.page.wait_for_timeout(1000)
        heights.append(front_end.page.evaluate(HEIGHT, int(node)))
        front_end.screenshot(tmp_path / f"{len(heights)}.png")
        assert not front_end.page.query_selector(PAST)
    print(tmp_path, width, heights)
    assert heights[0] == heights[2]
    assert width / 4 < heights[1] - heights[0] < width / 2, "from 2 / 3 of the width to all of it"
    assert front_end.problems == []
