"""Draws the templates: from each `workflows/api/NAME.json` the graph `workflows/NAME.json` and its thumbnail.

`python -m tests.comfyui.draw_workflows [NAME ...]` starts a ComfyUI and a browser; the front end itself turns the API
form into the UI form, so widget order and defaults are its own. Nodes stand in columns by their distance from the
inputs. The notes that stand beside a graph are in workflows/api/notes/NAME.md.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file

from packforcing_core.video import SegmentedWriter, VideoFormat
from tests.checkpoints import SMALL_STOCK, wan_state_dict, write_family
from tests.comfyui.browser import FrontEnd, open_front_end
from tests.comfyui.install import PACK
from tests.comfyui.server import ComfyServer
from tests.films import picture
from tests.vaes import stock_vae

WORKFLOWS = PACK / "workflows"
DEMO = "demo_"
"""What the names of workflows on the demo models begin with: they need no files and can be run as they are."""
LONGEST_RENDER_S = 1800
PICTURE_SECONDS = 5.0
"""How long the films are in the pictures of what the demo workflows render; the workflows' own are longer."""
SHORTEN = """seconds => window.app.rootGraph.nodes.filter(node => node.type === 'PackForcingSampler').forEach(
    node => { node.widgets.find(widget => widget.name === 'seconds').value = seconds; })"""
GRAPH_ON_PAGE = """margin => {
    const { canvas, ds } = window.app.canvas, page = canvas.getBoundingClientRect(), boxes = window.app.rootGraph.nodes
        .map(node => [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
    const edge = (i, pick) => pick(...boxes.map(box => box[i])), at = (i, v) => (v + ds.offset[i]) * ds.scale;
    const [left, top] = [edge(0, Math.min) - margin, edge(1, Math.min) - margin];
    const [right, bottom] = [edge(2, Math.max) + margin, edge(3, Math.max) + margin];
    return { x: page.x + at(0, left), y: page.y + at(1, top),
             width: (right - left) * ds.scale, height: (bottom - top) * ds.scale };
}"""
COLUMN_GAP, ROW_GAP, TITLE = 60, 50, 40
NOTE_WIDTH = 420


def api_names() -> list[str]:
    return sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


def read_api(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def place_files(server: ComfyServer, workflow: dict[str, Any]) -> None:
    """Small files under the public names that a workflow uses, so that no menu lacks its choice.

    The text encoder is a name only: its real size is fixed at 11 GB.
    """
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "PackForcingModelLoader":
            made = write_family(server.models("diffusion_models"), "self-forcing", wan_state_dict(SMALL_STOCK))[0]
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


def _write_film(path: Path) -> None:
    with SegmentedWriter(path, 96, 64, VideoFormat(fps=24.0)) as writer:
        writer.write(picture(0, 96, 96, 64))
        writer.finish()


def to_graph(front_end: FrontEnd, name: str) -> dict[str, Any]:
    """The UI form of a workflow, laid out, with its notes."""
    front_end.page.evaluate("([api, name]) => window.app.loadApiJson(api, name)", [read_api(name), name])
    front_end.page.wait_for_function("n => window.app.rootGraph.nodes.length === n", arg=len(read_api(name)))
    graph = front_end.page.evaluate("() => window.app.rootGraph.serialize()")
    for node in graph["nodes"]:  # a shared workflow gives the film that its author saw, until the seed is changed
        values = node.get("widgets_values") or []
        node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
    _arrange(graph)
    notes = WORKFLOWS / "api" / "notes" / f"{name}.md"
    if notes.exists():
        _add_note(graph, notes.read_text(encoding="utf-8"))
    return graph


def _arrange(graph: dict[str, Any]) -> None:
    depth: dict[int, int] = defaultdict(int)
    for _ in graph["nodes"]:  # as many rounds as the longest path can have
        for _, source, _, target, _, _ in graph["links"]:
            depth[target] = max(depth[target], depth[source] + 1)
    for _, source, *_ in graph["links"]:  # loaders stand right before what they feed
        if not any(link[3] == source for link in graph["links"]):
            depth[source] = min(depth[link[3]] for link in graph["links"] if link[1] == source) - 1
    x = 0.0
    for column in range(max(depth.values(), default=0) + 1):
        nodes = [node for node in graph["nodes"] if depth[node["id"]] == column]
        y = 0.0
        for node in nodes:
            node["pos"] = [x, y]
            y += node["size"][1] + TITLE + ROW_GAP
        x += max((node["size"][0] for node in nodes), default=0) + COLUMN_GAP


def _add_note(graph: dict[str, Any], text: str) -> None:
    """Below the first column: beside it, the graph would be too wide to be opened at a size where words are shown."""
    first = min(node["pos"][0] for node in graph["nodes"])
    column = [node for node in graph["nodes"] if node["pos"][0] == first]
    right = first + max(node["size"][0] for node in column)
    bottom = max(node["pos"][1] + node["size"][1] for node in column)
    number = graph["last_node_id"] + 1
    graph["last_node_id"] = number
    graph["nodes"].append(
        {
            "id": number,
            "type": "MarkdownNote",
            "title": "Read me",
            "pos": [right - NOTE_WIDTH, bottom + TITLE + ROW_GAP],
            "size": [NOTE_WIDTH, 60 + 17 * text.count("\n")],
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


def draw(front_end: FrontEnd, name: str, folder: Path) -> None:
    """Writes NAME.json and NAME.jpg into `folder`; a workflow that needs no files is shown with what it renders."""
    graph = to_graph(front_end, name)
    graph["extra"] = {}
    (folder / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
    front_end.load(graph)
    if name.startswith(DEMO):
        front_end.page.evaluate(SHORTEN, PICTURE_SECONDS)
        front_end.run(LONGEST_RENDER_S)
        front_end.show_all()  # nodes have grown
        front_end.page.wait_for_timeout(5000)  # films load
    shown = front_end.page.screenshot(clip=front_end.page.evaluate(GRAPH_ON_PAGE, 20))
    picture = Image.open(io.BytesIO(shown)).convert("RGB")
    picture.thumbnail((1200, 1200))
    picture.save(folder / f"{name}.jpg", quality=85)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        for name in names:
            place_files(server, read_api(name))
        for name in names:  # each in a browser of its own: a tab stays for every graph that was opened
            with open_front_end(server, 3200, 1800) as front_end:  # zoomed out further, nodes lose their text
                draw(front_end, name, WORKFLOWS)
                print(f"{name}: problems {front_end.problems or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:] or api_names())
