"""Prompts as nobody would draw them: every widget out of its range, megabytes of text, files that lie."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.client import PromptFailedError, PromptRejectedError
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream

MEGABYTE = "x" * 1_000_000

WINDOW = "Sliding window (Self-Forcing)"


@pytest.fixture(autouse=True)
def forgotten(comfy: ComfyServer) -> Iterator[None]:
    """Takes these prompts out of the shared server's history: NaN is no JSON to the front end of later tests."""
    yield
    comfy.client.post("/history", {"clear": True})


def bad_values(kind: Any, options: dict) -> Iterator[Any]:
    """Values that a widget of this description does not offer."""
    if isinstance(kind, list) or kind == "COMBO":
        yield from ("no such choice", MEGABYTE, "../x", 1)
    elif kind in ("INT", "FLOAT"):
        yield from (options["min"] - 1, options["max"] + 1, 10**30, "no number")
    if kind == "FLOAT":
        yield math.nan


def widgets(comfy: ComfyServer, node: str) -> Iterator[tuple[str, Any]]:
    info = comfy.client.object_info(node)[node]["input"]
    for name, (kind, *rest) in {**info["required"], **info.get("optional", {})}.items():
        for value in bad_values(kind, rest[0] if rest else {}):
            yield name, value


def all_files(comfy: ComfyServer) -> set[Path]:
    """Everything in and beside the server's folder, but for what it may write."""
    free = (comfy.output, comfy.base / "temp", comfy.base / "user", comfy.log)
    found = set()
    for folder, folders, names in os.walk(comfy.base.parent):  # Unlike rglob it passes over what vanishes meanwhile.
        here = Path(folder)
        folders[:] = [name for name in folders if here / name not in free]
        found |= {here / name for name in (*folders, *names)} - set(free)
    return found


@pytest.mark.parametrize("node", ["PackForcingModelLoader", "PackForcingSampler", "PackForcingStreamingVAEDecode"])
def test_every_widget_out_of_its_range_is_refused_and_nothing_is_written_elsewhere(
    comfy: ComfyServer, files: Files, node: str
):
    before, tried = all_files(comfy), 0
    for name, value in widgets(comfy, node):
        graph = Graph()
        cache = graph.add("PackForcingKVCache", policy=WINDOW, **{"policy.window_frames": 21})[0]
        latents = stream(graph, our_loader(graph, files), kv_cache=cache, seconds=0.5)
        decode(graph, latents, files)
        (own,) = [key for key, made in graph.prompt.items() if made["class_type"] == node]
        graph.prompt[own]["inputs"][name] = value
        with pytest.raises((PromptRejectedError, PromptFailedError)) as refused:
            comfy.client.run(graph.prompt)
        print(name, repr(value)[:30], "->", str(refused.value).splitlines()[1][:150])
        tried += 1
    print(f"{tried} values refused")
    assert tried > 5
    assert all_files(comfy) == before


@pytest.mark.parametrize("value", [-5, 10**6, 10**30, "x", MEGABYTE, None])
def test_a_knob_of_the_memory_out_of_its_range_is_refused(comfy: ComfyServer, files: Files, value):
    graph = Graph()
    cache = graph.add("PackForcingKVCache", policy=WINDOW, **{"policy.window_frames": value})[0]
    decode(graph, stream(graph, our_loader(graph, files), kv_cache=cache, seconds=0.5), files)
    with pytest.raises((PromptRejectedError, PromptFailedError)):
        comfy.client.run(graph.prompt)


@pytest.mark.parametrize("widget", ["render_name", "timesteps"])
def test_a_megabyte_of_text_is_refused_with_a_short_message(comfy: ComfyServer, files: Files, widget: str):
    graph = Graph()
    decode(graph, stream(graph, our_loader(graph, files), **{widget: MEGABYTE}), files)
    with pytest.raises(PromptRejectedError) as refused:
        comfy.client.run(graph.prompt)
    print(str(refused.value)[:300])


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_malicious_pickle_and_a_lying_header_are_refused_and_nothing_runs(comfy: ComfyServer, files: Files):
    folder = comfy.models("diffusion_models")
    (folder / "evil.pt").write_bytes(pickle.dumps({"a": Evil(comfy.base / "ran")}))
    header = b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}'
    (folder / "liar.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    for name in ("evil.pt", "liar.safetensors"):
        graph = Graph()
        model = graph.add("PackForcingModelLoader", checkpoint=name, weight_dtype="default", preset="auto")[0]
        decode(graph, stream(graph, model), files)
        with pytest.raises(PromptRejectedError, match=name) as refused:
            comfy.client.run(graph.prompt)
        print(refused.value)
        (folder / name).unlink()
    assert not (comfy.base / "ran").exists()
