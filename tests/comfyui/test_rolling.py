"""A checkpoint of a rolling family in a real ComfyUI, over the API."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.video.reader import probe, read_frames
from tests.checkpoints import SMALL_STOCK, wan_state_dict, write_family
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_memory import preset
from tests.comfyui.test_render import film_of

BLOCKS, STEPS = 8, 5


@pytest.fixture(scope="module")
def checkpoint(comfy: ComfyServer) -> str:
    models = comfy.models("diffusion_models")
    (path,) = write_family(models, "rolling-forcing", wan_state_dict(SMALL_STOCK))
    return path.relative_to(models).as_posix()


def loader(graph: Graph, checkpoint: str) -> Link:
    return graph.add("PackForcingModelLoader", checkpoint=checkpoint, weight_dtype="default", preset="auto")[0]


def test_a_rolling_checkpoint_rolls_and_every_call_is_a_tick(comfy: ComfyServer, files: Files, checkpoint: str):
    graph = Graph()
    latents = stream(graph, loader(graph, checkpoint), seconds=5.8)
    film = decode(graph, latents, files)
    with comfy.client.events() as events:
        entry = comfy.client.run(graph.prompt)
    assert probe(film_of(comfy, entry, film.id)).frames == 93
    read_out = [text for node, text in events.texts if node == latents[0]][-1]
    print(read_out)
    assert "5 blocks rolling together | attends to at most 168 tokens" in read_out  # 21 frames of 2 x 4 tokens
    assert "Warning" not in read_out
    ticks = [(e["value"], e["max"]) for e in events.of_type("progress") if e["node"] == film.id]
    values = sorted({int(value) for value, _ in ticks})
    print(f"progress {values} of {ticks[-1][1]}")
    assert {most for _, most in ticks} == {STEPS + 1 + 2 * (BLOCKS - 1)}
    assert values[-1] == ticks[-1][1]
    assert [int(value) for value, _ in ticks] == sorted(int(value) for value, _ in ticks)


def test_an_interrupted_rolling_render_goes_on_to_the_same_film(comfy: ComfyServer, files: Files, checkpoint: str):
    films = []
    for stop in (False, True):
        graph = Graph()
        model = loader(graph, checkpoint)
        latents = stream(graph, model, seconds=20.0, seed=31 + stop)
        graph.prompt[latents[0]]["inputs"]["seed"] = 31
        graph.prompt[latents[0]]["inputs"]["fps"] = 16.0 - stop  # Another node of its own, with the same latents.
        graph.prompt[latents[0]]["inputs"]["seconds"] = 20.0 * (16 / (16 - stop))
        film = decode(graph, latents, files, codec="lossless", blocks_per_segment=1)
        if stop:
            with comfy.client.events() as events:
                prompt_id = comfy.client.queue(graph.prompt)
                events.wait_for(lambda seen: any("block 7/" in text for _, text in seen.texts))
                comfy.client.interrupt(prompt_id)
                assert comfy.client.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
            graph.prompt[film.id]["inputs"]["filename_prefix"] = "video/rolled-on"
        with comfy.client.events() as events:
            entry = comfy.client.run(graph.prompt)
        reused = sum("reused" in text for node, text in events.texts if node == film.id)
        assert (reused >= 7) == stop
        films.append(np.stack(list(read_frames(film_of(comfy, entry, film.id)))))
    print(f"{len(films[0])} frames, {reused} blocks reused")
    assert films[0].std() > 1
    assert np.array_equal(*films)


def test_a_memory_that_cannot_roll_is_refused(comfy: ComfyServer, files: Files, checkpoint: str):
    for name, words in (
        ("Deep Forcing", ("deep_forcing", "self-forcing")),
        ("Sink + window (LongLive)", ("window_frames is 12",)),
    ):
        graph = Graph()
        decode(graph, stream(graph, loader(graph, checkpoint), kv_cache=preset(graph, name)), files)
        failed(comfy, graph, "PackForcingSampler", *words)
