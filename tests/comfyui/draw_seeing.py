"""Draws two images in `nodes/web/docs`: `seeing.jpg`, what is seen while the miniature renders, and its telemetry; and
`demo.jpg`, the whole graph with its finished video.

`python -m tests.comfyui.draw_seeing` starts a ComfyUI and a browser, opens packforcing_demo, presses
Run, takes the two nodes that follow the render when most of it is done, and the rest when all of it is.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.comfyui.browser import FrontEnd, open_browser, open_front_end
from tests.comfyui.draw_workflows import FILMS_SHOWN, GRAPH_ON_PAGE, LARGE, LONGEST_RENDER_S, SHORTEN, save_small
from tests.comfyui.install import PACK
from tests.comfyui.server import ComfyServer

DOCS = PACK / "nodes" / "web" / "docs"
SECONDS, LOOK_AT_BLOCK = 20.0, 15
HEIGHT, GAP = 520, 16
A_MOMENT_MS = 4000
"""Until the controls of a video that has appeared are hidden."""
SHOWN = ("PackForcingKVCache", "PackForcingStreamingVAEDecode")
COUNT_BLOCKS = """() => {
    window.blocks = 0;
    window.comfyAPI.api.api.addEventListener('packforcing.block', ({ detail }) => {
        window.blocks = 1 + (detail.block ?? -1);
    });
}"""
NODE_ON_PAGE = """([type, margin]) => {
    const { canvas, ds } = window.app.canvas, page = canvas.getBoundingClientRect();
    const [x, y, width, height] = window.app.rootGraph.nodes.find(node => node.type === type).boundingRect;
    const [left, top] = [x - margin + ds.offset[0], y - 1.4 * margin + ds.offset[1]];
    return { x: page.x + left * ds.scale, y: page.y + top * ds.scale,
             width: (width + 2 * margin) * ds.scale, height: (height + 2.4 * margin) * ds.scale };
}"""


def seen(front_end: FrontEnd, kind: str) -> Image.Image:
    """A node as it is now, with its frame and the badge above it."""
    clip = front_end.page.evaluate(NODE_ON_PAGE, [kind, 20])
    return Image.open(io.BytesIO(front_end.page.screenshot(clip=clip))).convert("RGB")


def draw(server: ComfyServer, front_end: FrontEnd) -> tuple[Image.Image, Image.Image]:
    """What the nodes show at LOOK_AT_BLOCK beside the telemetry of the whole render; and the graph at the end."""
    page = front_end.page
    front_end.open_template(server.pack_name, "packforcing_demo")
    page.evaluate(SHORTEN, SECONDS)
    page.evaluate(COUNT_BLOCKS)
    with page.expect_response("**/api/prompt") as answer:
        page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.blocks > 0")
    front_end.show_all()  # nodes have grown
    page.wait_for_function("n => window.blocks >= n", arg=LOOK_AT_BLOCK)
    page.wait_for_timeout(300)
    nodes = [seen(front_end, kind) for kind in SHOWN]
    server.client.wait(answer.value.json()["prompt_id"], LONGEST_RENDER_S)
    (telemetry,) = server.base.rglob("telemetry.png")
    page.wait_for_function(FILMS_SHOWN)
    front_end.show_all()
    page.mouse.move(5, 5)  # Away from the video, which then shows no controls.
    page.wait_for_timeout(A_MOMENT_MS)
    clip = page.evaluate(GRAPH_ON_PAGE, 20)
    graph = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    graph.thumbnail((1200, 1200))
    return side_by_side(nodes, Image.open(telemetry).convert("RGB")), graph


def side_by_side(nodes: list[Image.Image], telemetry: Image.Image) -> Image.Image:
    """The nodes at one scale, at which the highest has HEIGHT, and the telemetry beside them on its own ground."""
    scale = HEIGHT / max(picture.height for picture in nodes)
    fitted = [shrunk(picture, scale) for picture in nodes] + [shrunk(telemetry, HEIGHT / telemetry.height)]
    width = sum(picture.width for picture in fitted) + GAP * (len(fitted) - 1)
    sheet = Image.new("RGB", (width, HEIGHT), telemetry.getpixel((0, 0)))
    left = 0
    for picture in fitted:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def shrunk(picture: Image.Image, scale: float) -> Image.Image:
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Path(folder)) as server,
        open_browser() as browser,
        open_front_end(browser, server, *LARGE) as front_end,
    ):
        front_end.page.set_default_timeout(LONGEST_RENDER_S * 1000)
        for name, picture in zip(("seeing", "demo"), draw(server, front_end), strict=True):
            save_small(picture, DOCS / f"{name}.jpg")
        print(f"problems {front_end.problems or 'none'}")


if __name__ == "__main__":
    main()
