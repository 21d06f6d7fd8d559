"""The workflows on the demo models as a user runs them: opened from the templates, Run pressed, nothing downloaded."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from packforcing_core.video import probe
from packforcing_core.video.reader import read_frames
from tests.comfyui.browser import FrontEnd, until
from tests.comfyui.draw_workflows import DEMO, FILMS_SHOWN, api_names
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_front_end import NODES_LIKE, choose, lower_half_of_node, panel_text
from tests.comfyui.test_render import film_of

pytestmark = pytest.mark.browser

SET = """([name, value]) => window.app.rootGraph.nodes.filter(n => n.type === 'PackForcingSampler').forEach(
    node => { node.widgets.find(w => w.name === name).value = value; })"""
NODES_OF = "type => window.app.rootGraph.nodes.filter(n => n.type === type).map(n => String(n.id))"
KEEP = """() => {
    window.kept = [];
    window.blocks = [];
    const api = window.comfyAPI.api.api;
    api.addEventListener('packforcing.block', (event) => window.blocks.push(event.detail.block));
    api.addEventListener('packforcing.frame', ({ detail }) => window.kept.push([detail.node, detail.image]));
}"""
MONITOR = "window.app.rootGraph.getNodeById(id).widgets.find(w => w.name === 'packforcing_monitor')?.element"
PICTURE_ON_NODE = f"""id => {{
    const monitor = {MONITOR};
    const [video, frame] = ['video', 'img'].map(kind => monitor?.querySelector(`${{kind}}:not([hidden])`));
    const shown = video?.readyState >= 2 ? video : frame?.naturalWidth ? frame : null;
    if (!shown) return null;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [shown.videoWidth ?? shown.naturalWidth, shown.videoHeight ?? shown.naturalHeight];
    canvas.getContext('2d').drawImage(shown, 0, 0);
    return canvas.toDataURL();
}}"""
FILM_ON_PAGE = """name => {
    const films = [...document.querySelectorAll('video')];
    const film = films.find(video => new URL(video.src).searchParams.get('filename') === name);
    return film?.readyState >= 2 && film.offsetWidth > 0 && film.duration;
}"""

FILM_OF_NODE = f"""id => {{
    const node = window.app.rootGraph.getNodeById(id), vue = document.querySelector(`.lg-node[data-node-id="${{id}}"]`);
    const film = {MONITOR}.querySelector('video');
    if (!(film?.readyState >= 2 && film.offsetWidth > 0)) return null;
    const {{ canvas, ds }} = window.app.canvas, page = canvas.getBoundingClientRect();
    const [x, y] = [page.x, page.y].map((from, i) => from + (node.pos[i] + ds.offset[i]) * ds.scale);
    const [width, height] = [...node.size].map(length => length * ds.scale);
    const shown = film.getBoundingClientRect();
    const frame = vue?.getBoundingClientRect() ?? {{ x, y, right: x + width, bottom: y + height }};
    const inside = shown.x >= frame.x && shown.right <= frame.right
        && shown.y >= frame.y && shown.bottom <= frame.bottom + 1;
    return {{ name: new URL(film.src).searchParams.get('filename'), inside }};
}}"""
PLAY = f"""async id => {{
    const film = {MONITOR}.querySelector('video');
    await film.play();
    const end = performance.now() + 20000;
    while (film.currentTime < 0.5 && performance.now() < end) await new Promise(done => setTimeout(done, 50));
    return film.currentTime;
}}"""
NOTE_FRAMES = f"""() => {{
    window.frames_of = {{}};
    setInterval(() => window.app.rootGraph.nodes.forEach(({{ id }}) => {{
        const shown = {MONITOR}?.querySelector('video:not([hidden]), img:not([hidden])');
        if (shown) (window.frames_of[id] ??= new Set()).add(shown.currentTime ?? shown.src);
    }}), 50);
}}"""
COUNT_FRAMES = "id => window.frames_of[id]?.size ?? 0"
NAME_FILMS = """prefix => window.app.rootGraph.nodes.forEach(({ id, widgets }) =>
    (widgets ?? []).filter(w => w.name === 'filename_prefix').forEach(w => { w.value = prefix + id; }))"""
NOTE_ORDER = """() => {
    window.order = [];
    window.comfyAPI.api.api.addEventListener('executed', ({ detail }) => window.order.push(`made ${detail.node}`));
    const make = document.createElement;
    document.createElement = function (kind) {
        const element = make.apply(document, arguments);
        if (kind === 'video') element.addEventListener('loadeddata', () =>
            window.order.push(`shown ${new URL(element.src).searchParams.get('filename')}`));
        return element;
    };
}"""


def picture_of(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_url.split(",")[1]))).convert("RGB")


def press_run(front_end: FrontEnd) -> str:
    with front_end.page.expect_response("**/api/prompt") as answer:
        front_end.page.get_by_test_id("queue-button").click()
    return answer.value.json()["prompt_id"]


def nearest(picture: Image.Image, frames: np.ndarray) -> tuple[int, float, float]:
    """(the frame of the film that a picture shows, its mean difference of 255, that of the median frame)."""
    height, width = frames.shape[1:3]
    seen = np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.int16)
    differences = np.abs(frames.astype(np.int16) - seen).mean(axis=(1, 2, 3))
    return int(differences.argmin()), float(differences.min()), float(np.median(differences))


def watch(front_end: FrontEnd, node: str, prompt: str) -> dict[str, Any]:
    """What is seen of a node until it has changed three times and shown eight pictures, or the prompt has ended.

    Several of them can be of one frame: the newest that came, and the one that the video then begins with.
    """
    page = front_end.page

    def running() -> bool:
        return front_end.server.client.get(f"/history/{prompt}") == {}

    until(front_end, lambda: page.evaluate("window.kept.length") > 0 or not running())
    seen: dict[str, Any] = {"shots": [lower_half_of_node(front_end, node)], "on_node": {}, "panels": [], "changed": 0}
    while (seen["changed"] < 3 or len(seen["on_node"]) < 8) and running():
        page.wait_for_timeout(100)
        seen["shots"].append(lower_half_of_node(front_end, node))
        seen["changed"] += ImageChops.difference(*seen["shots"][-2:]).getbbox() is not None
        shown = page.evaluate(PICTURE_ON_NODE, int(node))
        if shown:
            seen["on_node"][shown] = picture_of(shown)
        seen["panels"].append(panel_text(front_end))
    # Panels of later blocks come with later blocks, where there are any.
    after = page.evaluate("window.blocks.length")
    until(front_end, lambda: page.evaluate("window.blocks.length") > after or not running())
    page.wait_for_timeout(100)
    seen["panels"].append(panel_text(front_end))
    return seen


@pytest.mark.parametrize("seconds", [8.0, pytest.param(120.0, marks=pytest.mark.long)])
def test_run_on_the_first_template_makes_the_film_while_the_preview_moves(
    comfy: ComfyServer, front_end: FrontEnd, seconds: float, tmp_path: Path
):
    front_end.pick_template(comfy.pack_name, "packforcing_demo")
    assert front_end.missing_nodes() == []
    page = front_end.page
    page.evaluate(SET, ["seconds", seconds])
    page.evaluate(KEEP)
    (node,) = page.evaluate(NODES_OF, "PackForcingStreamingVAEDecode")
    planned = panel_text(front_end)
    prompt = press_run(front_end)
    seen = watch(front_end, node, prompt)
    front_end.screenshot(tmp_path / "running.png")
    entry = comfy.client.wait(prompt)
    front_end.wait_until_idle()
    film = film_of(comfy, entry, node)
    page.wait_for_function(FILM_ON_PAGE, arg=film.name)
    front_end.screenshot(tmp_path / "done.png")
    assert entry["status"]["status_str"] == "success"
    assert seen["changed"] >= 3
    assert len({planned, seen["panels"][0], seen["panels"][-1], panel_text(front_end)}) >= 3

    info = probe(film)
    frames = np.stack(list(read_frames(film)))
    previews = [nearest(picture_of(url), frames) for shown, url in page.evaluate("window.kept") if shown == node]
    on_node = [nearest(picture, frames) for picture in seen["on_node"].values()]
    worst = max(difference for _, difference, _ in previews + on_node)
    print(tmp_path, info, seen["panels"][-1])
    print(f"{len(previews)} previews of {len({frame for frame, _, _ in previews})} frames, off by {worst:.2f} of 255")
    print(f"and from the film's median frame by {min(median for _, _, median in previews):.2f} at least;")
    print(f"on the node one after the other {sorted({frame for frame, _, _ in on_node})}")
    assert info.frames == round((seconds * 16 - 13) / 16) * 16 + 13
    assert len({frame for frame, _, _ in on_node}) >= 3
    assert all(difference < 2 and difference < median / 2 for _, difference, median in previews + on_node)
    assert [frame for frame, _, _ in previews] == sorted(frame for frame, _, _ in previews)
    assert front_end.problems == []


@pytest.mark.long
@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_the_second_runs_preview_moves_too_and_each_film_takes_its_place(
    comfy: ComfyServer, front_end: FrontEnd, nodes: str, tmp_path: Path
):
    front_end.pick_template(comfy.pack_name, "packforcing_demo")
    choose(front_end, "Comfy.VueNodes.Enabled", NODES_LIKE[nodes])
    page = front_end.page
    page.evaluate(SET, ["seconds", 3.0])
    page.evaluate(KEEP)
    (node,) = page.evaluate(NODES_OF, "PackForcingStreamingVAEDecode")
    films = []
    for seed in (901, 902):
        page.evaluate(SET, ["seed", seed + 10 * NODES_LIKE[nodes]])
        page.evaluate("window.kept = []")
        prompt = press_run(front_end)
        page.wait_for_function("window.kept.length > 1")
        shots, changed = [lower_half_of_node(front_end, node)], 0
        while not changed and comfy.client.get(f"/history/{prompt}") == {}:
            page.wait_for_timeout(100)
            shots.append(lower_half_of_node(front_end, node))
            changed += ImageChops.difference(*shots[-2:]).getbbox() is not None
        film = film_of(comfy, comfy.client.wait(prompt), node)
        page.wait_for_function(FILM_ON_PAGE, arg=film.name)
        films.append(film)
        front_end.screenshot(tmp_path / f"{nodes}-{seed}.png")
        print(tmp_path, seed, film.name, f"{len(page.evaluate('window.kept'))} previews, changed {changed}")
        assert changed, "the preview moved while the video was made"
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    assert not page.evaluate(FILM_ON_PAGE, films[0].name)
    assert front_end.problems == []


@pytest.mark.long
@pytest.mark.parametrize("nodes", NODES_LIKE)
def test_two_film_nodes_both_show_their_films_the_first_while_the_second_is_made(
    comfy: ComfyServer, front_end: FrontEnd, nodes: str, tmp_path: Path
):
    front_end.pick_template(comfy.pack_name, "packforcing_demo_continue_video")
    choose(front_end, "Comfy.VueNodes.Enabled", NODES_LIKE[nodes])
    page = front_end.page
    page.evaluate(SET, ["seconds", 4.0])
    page.evaluate(SET, ["seed", 921 + NODES_LIKE[nodes]])
    page.evaluate(NOTE_ORDER)
    page.evaluate(NOTE_FRAMES)
    makers = page.evaluate(NODES_OF, "PackForcingStreamingVAEDecode")
    for run in ("sampled", "reused"):
        page.evaluate(NAME_FILMS, f"video/{nodes}-{run}")
        page.evaluate("window.order = []")
        entry = front_end.run()
        films = [film_of(comfy, entry, node).name for node in makers]
        page.wait_for_function(FILM_ON_PAGE, arg=films[1])
        front_end.show_all()
        order, shown = page.evaluate("window.order"), [page.evaluate(FILM_OF_NODE, int(node)) for node in makers]
        played = [page.evaluate(PLAY, int(node)) for node in makers]
        frames = [page.evaluate(COUNT_FRAMES, int(node)) for node in makers]
        front_end.screenshot(tmp_path / f"{nodes}-{run}.png")
        said = [entry["outputs"][node]["text"][0] for node in makers]
        print(tmp_path, run, said, order, shown, f"played to {played}, {frames} frames seen before")
        assert ["no block reused" in text for text in said] == [run == "sampled"] * 2
        assert shown == [{"name": name, "inside": True} for name in films]
        assert min(played) >= 0.5
        assert min(frames) >= 3
        assert order.index(f"shown {films[0]}") < order.index(f"made {makers[1]}")
    choose(front_end, "Comfy.VueNodes.Enabled", False)
    assert front_end.problems == []


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in api_names() if name.startswith(DEMO)])
def test_run_finishes(comfy: ComfyServer, front_end: FrontEnd, name: str, tmp_path: Path):
    front_end.open_template(comfy.pack_name, name)
    entry = front_end.run(1800)
    front_end.show_all()  # nodes have grown
    front_end.page.wait_for_function(FILMS_SHOWN)
    front_end.screenshot(tmp_path / f"{name}.png")
    print(tmp_path, entry["status"]["status_str"])
    assert entry["status"]["status_str"] == "success"
    assert front_end.problems == []
