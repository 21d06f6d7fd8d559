"""Prompts in ComfyUI's API format, written the short way.

graph = Graph()
model = graph.add("UNETLoader", unet_name="tiny.safetensors", weight_dtype="default")
lora = graph.add("LoraLoaderModelOnly", model=model[0], lora_name="tiny.safetensors", strength_model=1.0)
client.run(graph.prompt)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Link = list[Any]  # [node id, output number], as the API writes it


@dataclass(frozen=True)
class Node:
    """One node of a graph; `node[n]` is its n-th output, to be given as another's input."""

    id: str

    def __getitem__(self, output: int) -> Link:
        return [self.id, output]


class Graph:
    """A growing prompt; `prompt` is the dictionary that /prompt takes."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, /, **inputs: Any) -> Node:
        """Adds a node. A dotted input name ("cache.top_k") is given as `**{"cache.top_k": 16}`."""
        node = Node(str(len(self.prompt) + 1))
        self.prompt[node.id] = {"class_type": class_type, "inputs": inputs}
        return node

    def conditioning(self, seed: int = 0, tokens: int = 12) -> Link:
        """A seeded CONDITIONING of the shape that Wan's text encoder gives, from the test-only node."""
        return self.add("PackForcingTestConditioning", seed=seed, tokens=tokens, width=4096)[0]
