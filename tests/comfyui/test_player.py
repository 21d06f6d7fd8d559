"""The player of the monitor by itself: the exchange of the growing file for the finished one."""

from __future__ import annotations

import pytest

from tests.comfyui.browser import FrontEnd
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files
from tests.comfyui.test_demo_front_end import press_run
from tests.comfyui.test_front_end import show
from tests.comfyui.test_monitor import CALLS, FINISHED, PLAYS, VIDEO, held, small_video, wait_for
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

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
        at = front_end.page.evaluate(f"{VIDEO}.currentTime")
    video = film_of(comfy, comfy.client.wait(prompt), node)
    wait_for(front_end, FINISHED, video.name)
    front_end.page.wait_for_timeout(700)  # The nodes look every half second.
    looked, black, now, volume = front_end.page.evaluate(
        f"[window.looked, window.black, {VIDEO}.currentTime, {VIDEO}.volume]"
    )
    print(f"black in {black} of {looked} frames of the page; at {at:.1f} s before, at {now:.1f} s after")
    assert looked > 20
    assert black == 0
    assert now >= at
    assert volume == 0.25
    assert front_end.page.evaluate("document.querySelectorAll('video').length") == 1
    assert front_end.problems == []
