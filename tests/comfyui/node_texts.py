"""What the nodes say about themselves, and the order of their widgets, as a running ComfyUI describes them.

`python -m tests.comfyui.node_texts` starts a ComfyUI and writes locales/en/nodeDefs.json from the nodes' own texts, and
adds new widgets and outputs to widget_order.json. Chinese texts are written by hand; a test names those that are
missing. The menu of policies is in no English file: the node says what the policies' own files say.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packforcing_core.cache.config import DOCUMENTED_PRESETS
from tests.comfyui.install import PACK
from tests.comfyui.server import ComfyServer

LOCALES = PACK / "locales"
WIDGET_ORDER = Path(__file__).with_name("widget_order.json")
SOCKET_FREE = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
Info = dict[str, Any]


def our_nodes(server: ComfyServer) -> dict[str, Info]:
    """The descriptions of the pack's nodes by id."""
    everything = server.client.object_info()
    return {
        name: everything[name] for name in sorted(everything) if name.startswith("PackForcing") and "Test" not in name
    }


def inputs_of(info: Info) -> Iterator[tuple[str, str, Info]]:
    """(name, type, options) of a node's inputs in the order of the front end."""
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            declared = info["input"][kind][name]
            yield name, "COMBO" if isinstance(declared[0], list) else declared[0], declared[1] if declared[1:] else {}


def parts_of(options: Info) -> Iterator[tuple[str, str, Info]]:
    """(choice, name, options) of the inputs that appear with each choice of a dynamic menu."""
    for option in options["options"]:
        for kind in ("required", "optional"):
            for name, declared in option["inputs"].get(kind, {}).items():
                yield option["key"], name, declared[1]


def english(info: Info) -> Info:
    """The locale entry of a node. A menu whose parts depend on the choice is left to the node itself."""
    inputs: dict[str, Info] = {}
    for name, kind, options in inputs_of(info):
        tooltip = None if kind == DYNAMIC else options.get("tooltip")
        inputs[name] = _entry(options.get("display_name") or name, tooltip)
    tooltips = info.get("output_tooltips") or [None] * len(info["output_name"])
    outputs = {
        str(i): _entry(name, tip) for i, (name, tip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def documented_parts(info: Info) -> Iterator[tuple[str, str]]:
    """(menu, part) of the parts that appear with a choice which the help pages list and which has Chinese texts."""
    for name, kind, options in inputs_of(info):
        for choice, part, _ in parts_of(options) if kind == DYNAMIC else ():
            if choice in DOCUMENTED_PRESETS:
                yield name, part


def _entry(name: str, tooltip: str | None) -> Info:
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def widget_order(info: Info) -> dict[str, list[str]]:
    """Names of widgets and outputs in the order in which a saved workflow counts them; a menu's parts by its choice."""
    order: dict[str, list[str]] = {"widgets": [], "outputs": list(info["output_name"])}
    for name, kind, options in inputs_of(info):
        if kind in SOCKET_FREE or kind == DYNAMIC:
            order["widgets"].append(name)
        for choice, part, _ in parts_of(options) if kind == DYNAMIC else ():
            order.setdefault(f"{name}={choice}", []).append(part)
    return order


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        nodes = our_nodes(server)
    write_json(LOCALES / "en" / "nodeDefs.json", {name: english(info) for name, info in nodes.items()})
    write_json(WIDGET_ORDER, {name: widget_order(info) for name, info in nodes.items()})


if __name__ == "__main__":
    main()
