"""The nodes that a MODEL passed through before it came to a sampler."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Prompt = Mapping[str, Mapping[str, Any]]

_CARRY_MODELS = ("MODEL", "*", "COMFY_MATCHTYPE_V3")
"""Types of outputs that may hold a MODEL: of switches and the like, too."""


@dataclass(frozen=True)
class Upstream:
    """A node by which a MODEL may have come. `direct`: it certainly did, since no node on the way chooses or merges."""

    title: str
    kind: str
    inputs: Mapping[str, Any]
    direct: bool


def upstream(prompt: Prompt, sampler: str) -> Iterator[Upstream]:
    """The nodes by which the sampler's MODEL may have come, the nearest first."""
    waiting, seen = [(prompt.get(sampler, {}).get("inputs", {}).get("model"), True)], set()
    while waiting:
        link, direct = waiting.pop(0)
        if not _is_link(link) or link[0] in seen or link[0] not in prompt:
            continue
        seen.add(link[0])
        node = prompt[link[0]]
        inputs = node["inputs"]
        yield Upstream(_title(node), node["class_type"], inputs, direct)
        models = [given for given in inputs.values() if _is_link(given) and _carries_model(prompt, given)]
        waiting += [(given, direct and len(models) == 1) for given in models]


def _is_link(given: Any) -> bool:
    return isinstance(given, list) and len(given) == 2


def _carries_model(prompt: Prompt, link: list) -> bool:
    kind = _comfy_nodes().NODE_CLASS_MAPPINGS.get(prompt.get(link[0], {}).get("class_type"))
    outputs = getattr(kind, "RETURN_TYPES", None) or ()
    return link[1] < len(outputs) and outputs[link[1]] in _CARRY_MODELS


def _title(node: Mapping[str, Any]) -> str:
    kind = node["class_type"]
    return node.get("_meta", {}).get("title") or _comfy_nodes().NODE_DISPLAY_NAME_MAPPINGS.get(kind) or kind


def _comfy_nodes():
    """ComfyUI's module `nodes`, which has the name of this package."""
    return importlib.import_module("nodes")
