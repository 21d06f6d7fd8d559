"""The telemetry that comes out of the decode node as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from packforcing_core.drawing.chart import LINES, LOOKED_AT, WIDTH
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_memory import preset, small_bank


def picture_of(comfy: ComfyServer, graph: Graph, saved: str) -> np.ndarray:
    entry = comfy.client.run(graph.prompt)
    (file,) = entry["outputs"][saved]["images"]
    return np.asarray(Image.open(comfy.output / file["subfolder"] / file["filename"]).convert("RGB"))


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(axis=-1) <= 1).sum())


def test_the_render_comes_as_a_picture_and_a_second_film_of_it_has_the_same_times(comfy: ComfyServer, files: Files):
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
    latents = stream(graph, our_loader(graph, files), kv_cache=cache, vae=vae, seconds=5.0, seed=51)
    film = decode(graph, latents, files)
    saved = graph.add("SaveImage", images=film[2], filename_prefix="telemetry")
    first = picture_of(comfy, graph, saved.id)
    counts = {name: has(first, colour) for name, colour in {**LINES, "looked at": LOOKED_AT}.items()}
    print(first.shape, counts)
    assert first.shape[1] == WIDTH
    assert all(count > 20 for count in counts.values())

    graph.prompt[film.id]["inputs"]["quality"] = 40
    again = picture_of(comfy, graph, saved.id)
    changed = (first[:450] != again[:450]).any(axis=-1).mean()
    print(f"{changed:.2%} of the charts' pixels differ after the re-run")
    assert changed < 0.001
