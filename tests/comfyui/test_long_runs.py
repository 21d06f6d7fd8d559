"""Two hundred prompts in one ComfyUI, two renders at once, and cancelling in every stage."""

from __future__ import annotations

import gc
import time

import numpy as np
import psutil
import pytest

from packforcing_core.video.reader import read_frames
from tests.comfyui.client import Events
from tests.comfyui.graphs import Graph, Node
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_render import film_of
from tests.comfyui.test_survive import frames, long_graph, told

PROMPTS = 200


def short_graph(files: Files, seed: int) -> tuple[Graph, Node]:
    graph = Graph()
    settings = {"seconds": 1.0, "seed": seed, "timesteps": "1000"}
    return graph, decode(
        graph, stream(graph, our_loader(graph, files), **settings), files, filename_prefix="video/many"
    )


@pytest.mark.long
def test_two_hundred_queued_prompts_leave_no_growth_behind(comfy: ComfyServer, files: Files):
    process, rows, started = psutil.Process(comfy.process.pid), [], time.monotonic()
    ids = [comfy.client.queue(short_graph(files, 1000 + number)[0].prompt) for number in range(PROMPTS)]
    for number, prompt_id in enumerate(ids, start=1):
        entry = comfy.client.wait(prompt_id)
        assert entry["status"]["status_str"] == "success"
        if number % 20 == 0:
            gc.collect()
            rows.append((process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()))
            print(
                f"{number} prompts, {time.monotonic() - started:.0f} s: {rows[-1][0]:.1f} MB, {rows[-1][1:]}",
                flush=True,
            )
    later = rows[2:]
    growth = later[-1][0] - later[0][0]
    print(f"{growth:+.1f} MB from prompt 60 to {PROMPTS}")
    assert growth < 60, "MB: ComfyUI's own history of 140 prompts is part of it"
    assert later[-1][1] <= later[0][1] + 4
    assert later[-1][2] <= later[0][2] + 4


@pytest.mark.long
def test_two_renders_queued_at_once_are_what_each_is_alone(comfy: ComfyServer, files: Files):
    graphs = [long_graph(files, seconds=3.0, seed=70 + number) for number in range(2)]
    ids = [comfy.client.queue(graph.prompt) for graph, _ in graphs]
    together = [frames(comfy, comfy.client.wait(i), film) for i, (_, film) in zip(ids, graphs, strict=True)]
    for number, (film, made) in enumerate(zip(graphs, together, strict=True)):
        graph, node = long_graph(files, seconds=3.0, seed=70 + number, render_name=f"alone {number}")
        alone = frames(comfy, comfy.client.run(graph.prompt), node)
        assert np.array_equal(alone, made), film
    assert not np.array_equal(*together)


def in_sampling(seen: Events) -> bool:
    return any(data["value"] > 8 for data in seen.of_type("progress"))


def in_decoding(seen: Events) -> bool:
    return seen.previews >= 2


def at_the_start(seen: Events) -> bool:
    return bool(seen.of_type("executing"))


@pytest.mark.long
@pytest.mark.parametrize("stage", [at_the_start, in_sampling, in_decoding])
def test_cancelling_in_any_stage_stops_at_once_and_the_same_prompt_goes_on(comfy: ComfyServer, files: Files, stage):
    graph, film = long_graph(files, seconds=20.0, seed=90 + len(stage.__name__))
    with comfy.client.events() as events:
        prompt_id = comfy.client.queue(graph.prompt)
        events.wait_for(stage)
        asked = time.monotonic()
        comfy.client.interrupt(prompt_id)
        entry = comfy.client.wait(prompt_id)
    took = time.monotonic() - asked
    print(f"{stage.__name__}: stopped {took:.2f} s after it was asked to")
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert took < 15, "seconds of a film of 20"
    for growing in comfy.output.glob("packforcing/auto-*/film/*.growing.mp4"):
        assert growing.stat().st_size < 3000 or sum(1 for _ in read_frames(growing)) > 0
    entry = comfy.client.run(graph.prompt)
    print(told(entry, film))
    again, other = long_graph(files, seconds=20.0, seed=90 + len(stage.__name__), render_name=f"whole {stage.__name__}")
    assert np.array_equal(frames(comfy, entry, film), frames(comfy, comfy.client.run(again.prompt), other))
    assert film_of(comfy, entry, film.id).exists()
