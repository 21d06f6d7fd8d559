"""Where the files of the templates come from: the front end offers them when one is missing.

`python -m tests.comfyui.model_links` writes the links into the templates' loader nodes.
"""

from __future__ import annotations

import json
from typing import Any

from tests.comfyui.install import PACK

_WAN = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_CAUSAL = "https://huggingface.co/zhuhz22/Causal-Forcing/resolve/main"
LINKS = {
    "self_forcing_dmd.pt": (
        "https://huggingface.co/gdhe17/Self-Forcing/resolve/main/checkpoints/self_forcing_dmd.pt",
        "diffusion_models",
    ),
    "chunkwise/causal_forcing.pt": (f"{_CAUSAL}/chunkwise/causal_forcing.pt", "diffusion_models"),
    "framewise/causal_forcing.pt": (f"{_CAUSAL}/framewise/causal_forcing.pt", "diffusion_models"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        f"{_WAN}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "text_encoders",
    ),
    "lightvaew2_1.safetensors": (
        "https://huggingface.co/lightx2v/Autoencoders/resolve/main/lightvaew2_1.safetensors",
        "vae",
    ),
    "wan_2.1_vae.safetensors": (f"{_WAN}/vae/wan_2.1_vae.safetensors", "vae"),
}
"""file -> (address, folder of ComfyUI's models)"""


def add_links(graph: dict[str, Any]) -> None:
    """Gives each node of a graph in UI form the addresses of the files that it names."""
    for node in graph["nodes"]:
        values = node.get("widgets_values")
        names = [value for value in values if value in LINKS] if isinstance(values, list) else []
        if names:
            links = [{"name": name, "url": LINKS[name][0], "directory": LINKS[name][1]} for name in names]
            node["properties"] = {**node.get("properties", {}), "models": links}


if __name__ == "__main__":
    for path in sorted((PACK / "workflows").glob("*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        add_links(graph)
        path.write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
