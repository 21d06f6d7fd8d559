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
    """A node by which a MODEL may have come. `direct`: it certainly did, since no node on the way chooses or merges.
    `passes`: it got the MODEL from another node.
    """

    title: str
    kind: str
    inputs: Mapping[str, Any]
    direct: bool
    passes: bool


def upstream(prompt: Prompt, sampler: str) -> Iterator[Upstream]:
    """The nodes by which the sampler's MODEL may have come, the nearest first."""
    waiting: list[tuple[Any, bool]] = [(_inputs(prompt.get(sampler, {})).get("model"), True)]
    seen: set[str] = set()
    while waiting:
        link, direct = waiting.pop(0)
        if not _is_link(link) or link[0] in seen or link[0] not in prompt:
            continue
        seen.add(link[0])
        node = prompt[link[0]]
        kind = str(node.get("class_type"))
        models = list(_models(prompt, kind, _inputs(node)))
        yield Upstream(_title(node, kind), kind, _inputs(node), direct, bool(models))
        waiting += [(given, direct and len(models) == 1) for given in models]


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return node.get("inputs") or {}


def _is_link(given: Any) -> bool:
    return isinstance(given, list) and len(given) == 2 and isinstance(given[0], str) and isinstance(given[1], int)


def _models(prompt: Prompt, kind: str, inputs: Mapping[str, Any]) -> Iterator[list]:
    """The links by which a node of this class may get a MODEL: both of their ends may carry one."""
    declared = {
        name: how[0]
        for section in _class(kind).INPUT_TYPES().values()
        for name, how in (section.items() if isinstance(section, dict) else ())
        if isinstance(how, list | tuple) and how
    }
    for name, given in inputs.items():
        if _is_link(given) and declared.get(name, "*") in _CARRY_MODELS:
            outputs = _class(prompt.get(given[0], {}).get("class_type")).RETURN_TYPES or ()
            if given[1] < len(outputs) and outputs[given[1]] in _CARRY_MODELS:
                yield given


def _title(node: Mapping[str, Any], kind: str) -> str:
    named = (node.get("_meta") or {}).get("title")
    return named or _comfy_nodes().NODE_DISPLAY_NAME_MAPPINGS.get(kind) or kind


class _Unknown:
    """In place of a node class that this ComfyUI does not have."""

    RETURN_TYPES = ()

    @staticmethod
    def INPUT_TYPES() -> dict:  # noqa: N802
        return {}


def _class(kind: Any) -> Any:
    return _comfy_nodes().NODE_CLASS_MAPPINGS.get(kind, _Unknown)


def _comfy_nodes():
    """ComfyUI's module `nodes`, which has the name of this package."""
    return importlib.import_module("nodes")
