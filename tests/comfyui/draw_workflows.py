"""Draws the templates: from each `workflows/api/NAME.json` the graph `workflows/NAME.json` and its thumbnail.

`python -m tests.comfyui.draw_workflows [--pictures] [NAME ...]` starts a ComfyUI and a browser; the front end itself
turns the API form into the UI form, so widget order and defaults are its own. `--pictures` leaves the graphs as they
are. `layout.py` says where nodes stand. The note of a graph is workflows/api/notes/NAME.md; a node whose `_meta` has
"collapsed" is drawn so.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from torch import Tensor

from packforcing_core.checkpoint.keys import expected_shapes
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.video import SegmentedWriter, VideoFormat, read_frames
from tests.checkpoints import SMALL_STOCK, wan_state_dict, write_family
from tests.comfyui.browser import FrontEnd, open_browser, open_front_end
from tests.comfyui.install import PACK
from tests.comfyui.layout import arrange
from tests.comfyui.model_links import add_links
from tests.comfyui.server import ComfyServer
from tests.films import picture
from tests.vaes import stock_vae

WORKFLOWS = PACK / "workflows"
DEMO = "packforcing_demo"
"""What the names of workflows on the demo models begin with: they need no files and can be run as they are."""
BF16 = "PACKFORCING_TEST_BF16"
"""Set, the test nodes let ComfyUI take any processor for one that computes in bf16."""
LONGEST_RENDER_S = 1800
LARGE = (2000, 1250)
"""The window for the pictures."""
LARGEST_BYTES = 130_000
PICTURE_SECONDS = 5.0
"""How long the videos are in the pictures of what the demo workflows render; the workflows' own are longer."""
SECONDS_OF = {"packforcing_demo_timed_prompts": 33.0, "packforcing_demo_compare_memory": 40.0}
"""Longer ones, which are shown faster."""
CAPTION = 34
"""The height of the line with the topic below the pictures: they look alike in the template browser."""
MOVING_WIDTH = 384
SHORTEN = """seconds => window.app.rootGraph.nodes
    .filter(node => node.type === 'PackForcingSampler' || node.title === 'Seconds')
    .forEach(node => { node.widgets.find(w => ['seconds', 'value'].includes(w.name)).value = seconds; })"""
FILMS_SHOWN = """() => window.app.rootGraph.nodes.every(node => {
    if (!window.app.nodeOutputs[node.id]?.animated) return true;
    const monitor = node.widgets.find(w => w.name === 'packforcing_monitor')?.element ?? node.videoContainer;
    const film = monitor?.querySelector('video');
    return film?.readyState >= 2 && film.offsetWidth > 0;
})"""
GRAPH_ON_PAGE = """margin => {
    const { canvas, ds } = window.app.canvas, page = canvas.getBoundingClientRect(), boxes = window.app.rootGraph.nodes
        .map(node => [...node.boundingRect]).map(([x, y, width, height]) => [x, y, x + width, y + height]);
    const edge = (i, pick) => pick(...boxes.map(box => box[i])), at = (i, v) => (v + ds.offset[i]) * ds.scale;
    const [left, top] = [edge(0, Math.min) - margin, edge(1, Math.min) - margin];
    const [right, bottom] = [edge(2, Math.max) + margin, edge(3, Math.max) + margin];
    return { x: page.x + at(0, left), y: page.y + at(1, top),
             width: (right - left) * ds.scale, height: (bottom - top) * ds.scale };
}"""
SERIALIZED = "() => window.app.rootGraph.serialize()"
LOOK_AT_NOTE = """() => {
    const { pos } = window.app.rootGraph.nodes.find(node => node.type === 'MarkdownNote'), canvas = window.app.canvas;
    canvas.ds.scale = 1;
    [canvas.ds.offset[0], canvas.ds.offset[1]] = [100 - pos[0], 100 - pos[1]];
    canvas.setDirty(true, true);
}"""
NOTE_HEIGHT = """() => {
    const lines = [...document.querySelectorAll('.comfy-markdown .ProseMirror > *')];
    return Math.max(0, ...lines.map(line => line.offsetTop + line.offsetHeight));
}"""
WIDEST = 360
"""What is wider (fields for text) is made as wide as this: graphs must not be wide."""
WIDTHS = {"PackForcingStackVideos": 720}
BESIDE_STACK = {"CLIPTextEncode": 260}
"""The stack takes the room of other nodes."""
"""For videos side by side."""
PROMPTS = {"CLIPTextEncode": 140, "PackForcingTimedPrompts": 310}
"""The heights of nodes with fields for prompts of some lines."""
NOTE_MARGIN = 40
"""What the frame of a note adds to the height of its text."""


def api_names() -> list[str]:
    return sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


def read_api(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def place_files(server: ComfyServer, workflow: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
    """Small files under the public names that a workflow uses, so that no menu lacks its choice.

    `weights` go into checkpoints, random ones by default. The text encoder is a name only: its real size is fixed at
    11 GB.
    """
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "PackForcingModelLoader":
            weights = weights or wan_state_dict(SMALL_STOCK)
            made = write_family(server.models("diffusion_models"), "self-forcing", weights)[0]
            named = server.models("diffusion_models") / inputs["checkpoint"]
            named.parent.mkdir(parents=True, exist_ok=True)
            if named != made:
                shutil.copy(made, named)
        elif node["class_type"] == "CLIPLoader":
            (server.models("text_encoders") / inputs["clip_name"]).touch()
        elif node["class_type"] == "VAELoader":
            narrow = 4 if "light" in inputs["vae_name"] else 8
            save_file(stock_vae(narrow).state_dict(), server.models("vae") / inputs["vae_name"])
        elif node["class_type"] == "LoadImage":
            Image.fromarray(picture(0, 1, 96, 64)[0]).save(server.base / "input" / inputs["image"])
        elif node["class_type"] == "LoadVideo":
            _write_film(server.base / "input" / inputs["file"])


def real_shapes() -> dict[str, Tensor]:
    """Tensors of the 1.3B's shapes, each over one number of memory: graphs that are only drawn plan with them."""
    return {name: torch.zeros(1).expand(shape) for name, shape in expected_shapes(WAN_SIZES["1.3B"]).items()}


def _write_film(path: Path) -> None:
    with SegmentedWriter(path, 96, 64, VideoFormat(fps=24.0)) as writer:
        writer.write(picture(0, 96, 96, 64))
        writer.finish()


def to_graph(front_end: FrontEnd, name: str) -> dict[str, Any]:
    """The UI form of a workflow, laid out, with its notes."""
    front_end.page.evaluate("([api, name]) => window.app.loadApiJson(api, name)", [read_api(name), name])
    front_end.page.wait_for_function("n => window.app.rootGraph.nodes.length === n", arg=len(read_api(name)))
    graph = front_end.page.evaluate(SERIALIZED)
    _fold(graph, read_api(name))
    widths = {**WIDTHS, **(BESIDE_STACK if any(node["type"] in WIDTHS for node in graph["nodes"]) else {})}
    for node in graph["nodes"]:
        width = widths.get(node["type"], min(WIDEST, node["size"][0]))
        node["size"] = [width, PROMPTS.get(node["type"], node["size"][1])]
    notes = WORKFLOWS / "api" / "notes" / f"{name}.md"
    if notes.exists():
        _add_note(graph, notes.read_text(encoding="utf-8"))
    front_end.load(graph)
    lines = _note_height(front_end) if notes.exists() else 0
    graph = front_end.page.evaluate(SERIALIZED)  # nodes have the sizes that their panels need
    for node in graph["nodes"]:  # a shared workflow gives the film that its author saw, until the seed is changed
        values = node.get("widgets_values") or []
        node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
        if node["type"] == "MarkdownNote":
            node["size"] = [WIDEST, lines + NOTE_MARGIN]
    zoom = arrange(graph)
    print(f"{name}: opens at a zoom of {zoom:.3f}")
    return graph


def _note_height(front_end: FrontEnd) -> float:
    front_end.page.evaluate(LOOK_AT_NOTE)  # from further away, or out of sight, it has no text
    front_end.page.wait_for_function(f"({NOTE_HEIGHT})() > 0")
    return front_end.page.evaluate(NOTE_HEIGHT)


def _fold(graph: dict[str, Any], api: dict[str, Any]) -> None:
    """Collapses the nodes whose API form says so: those that repeat another one's settings."""
    for node in graph["nodes"]:
        if api[str(node["id"])].get("_meta", {}).get("collapsed"):
            node["flags"] = {**node.get("flags", {}), "collapsed": True}


def _add_note(graph: dict[str, Any], text: str) -> None:
    number = graph["last_node_id"] + 1
    graph["last_node_id"] = number
    graph["nodes"].append(
        {
            "id": number,
            "type": "MarkdownNote",
            "title": "Read me",
            "pos": [-WIDEST, 0],
            "size": [WIDEST, WIDEST],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [text],
            "color": "#432",
            "bgcolor": "#653",
        }
    )


def write_graph(front_end: FrontEnd, name: str, folder: Path) -> None:
    """Writes NAME.json into `folder`."""
    graph = to_graph(front_end, name)
    graph["extra"] = {}
    for output in (output for node in graph["nodes"] for output in node["outputs"]):
        if output.get("slot_index") is None:  # The front end writes it, and then finds it invalid.
            output.pop("slot_index", None)
    add_links(graph)
    (folder / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")


def write_picture(front_end: FrontEnd, name: str, folder: Path) -> None:
    """Writes NAME.jpg: the graph of a workflow; or what it renders, in motion, where it needs no files for that."""
    if name.startswith(DEMO):
        seconds = SECONDS_OF.get(name, PICTURE_SECONDS)
        frames = rendered(front_end.server, read_api(name), seconds)
        save_moving(frames[:: round(2 * seconds / PICTURE_SECONDS)], topic(name), folder / f"{name}.jpg")
        return
    front_end.load(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    shown = front_end.page.screenshot(clip=front_end.page.evaluate(GRAPH_ON_PAGE, 20))
    picture = Image.open(io.BytesIO(shown)).convert("RGB")
    picture.thumbnail((1200, 1200))
    save_small(captioned(picture, topic(name), 4 * CAPTION), folder / f"{name}.jpg")


def topic(name: str) -> str:
    """What a template shows, from its name: "demo: timed prompts"."""
    kind, *words = name.removeprefix("packforcing_").split("_")
    return f"{kind}: {' '.join(words) or 'first video'}"


def captioned(picture: Image.Image, text: str, height: int) -> Image.Image:
    """The picture with a line of text below."""
    whole = Image.new("RGB", (picture.width, picture.height + height), (24, 24, 27))
    whole.paste(picture)
    at = picture.width / 2, picture.height + height / 2
    ImageDraw.Draw(whole).text(at, text, (235, 235, 235), ImageFont.load_default(0.6 * height), anchor="mm")
    return whole


def rendered(server: ComfyServer, workflow: dict[str, Any], seconds: float) -> list[np.ndarray]:
    """The frames of the last video that a workflow makes, shortened to `seconds`."""
    for node in workflow.values():
        if "seconds" in node["inputs"] and node["class_type"] == "PackForcingSampler":
            node["inputs"]["seconds"] = seconds
        elif node.get("_meta", {}).get("title") == "Seconds":
            node["inputs"]["value"] = seconds
    outputs = server.client.run(workflow, LONGEST_RENDER_S)["outputs"]
    file = [output["images"][0] for _, output in sorted(outputs.items(), key=lambda o: int(o[0])) if "images" in output]
    return list(read_frames(server.output / file[-1]["subfolder"] / file[-1]["filename"]))


def save_moving(frames: list[np.ndarray], text: str, path: Path) -> None:
    """An animated WebP under a name that ends with .jpg: no other is asked for, and browsers look into the file."""
    pictures = [Image.fromarray(frame) for frame in frames]
    height = round(MOVING_WIDTH * pictures[0].height / pictures[0].width)
    large = (picture.resize((MOVING_WIDTH, height), Image.Resampling.BICUBIC) for picture in pictures)
    pictures = [captioned(picture, text, CAPTION) for picture in large]
    settings = {"save_all": True, "append_images": pictures[1:], "duration": 125, "loop": 0, "method": 6}
    for quality in (75, 60, 45, 30):
        pictures[0].save(path, "WEBP", quality=quality, **settings)
        if path.stat().st_size < LARGEST_BYTES:
            return


def save_small(picture: Image.Image, path: Path) -> None:
    """At the best quality at which the file has less than LARGEST_BYTES, or at the last."""
    for quality in (85, 80, 75, 70, 65, 60, 55, 50):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size < LARGEST_BYTES:
            return


def draw(names: list[str], graphs: bool, weights: dict[str, Tensor] | None, *arguments: str) -> None:
    """Writes pictures, and graphs before if wanted, on a server that is started with `arguments`."""
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder), arguments=arguments) as server:
        for name in names:
            place_files(server, read_api(name), weights)
        with open_browser() as browser, open_front_end(browser, server, *LARGE) as front_end:
            front_end.page.set_default_timeout(LONGEST_RENDER_S * 1000)
            for name in names:
                if graphs:
                    write_graph(front_end, name, WORKFLOWS)
                write_picture(front_end, name, WORKFLOWS)
                print(f"{name}: problems {front_end.problems or 'none'}", flush=True)


def main(words: list[str]) -> None:
    names = [word for word in words if word != "--pictures"] or api_names()
    graphs = "--pictures" not in words
    rendered, drawn = ([name for name in names if name.startswith(DEMO) == demo] for demo in (True, False))
    if rendered:
        draw(rendered, graphs, None)
    if drawn:
        os.environ[BF16] = "1"  # Plans as on a GPU, in the numbers of the README.
        draw(drawn, graphs, real_shapes(), "--bf16-unet")


if __name__ == "__main__":
    main(sys.argv[1:])
