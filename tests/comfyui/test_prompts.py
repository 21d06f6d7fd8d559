"""Prompts that change over time in a real ComfyUI: from one text, and from stock nodes one by one."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.video.reader import read_frames
from tests.comfyui.client import PromptRejectedError
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_render import film_of

FAST = {"seconds": 6.0, "timesteps": "1000"}


def timed(graph: Graph, timeline: str, **settings) -> Link:
    clip = graph.add("PackForcingTestClip")[0]
    inputs = {"blend_seconds": 0.0, "recache": False, "prefix": "", **settings}
    return graph.add("PackForcingTimedPrompts", clip=clip, timeline=timeline, **inputs)[0]


def encoded(graph: Graph, text: str) -> Link:
    return graph.add("CLIPTextEncode", clip=graph.add("PackForcingTestClip")[0], text=text)[0]


def film(comfy: ComfyServer, files: Files, prompts, **settings) -> tuple[np.ndarray, str]:
    """The frames, and what the sampler says in the history."""
    graph = Graph()
    sampled = stream(graph, our_loader(graph, files), **{**FAST, **settings})
    graph.prompt[sampled[0]]["inputs"]["positive"] = prompts(graph)
    node = decode(graph, sampled, files, codec="lossless", filename_prefix="video/prompts")
    entry = comfy.client.run(graph.prompt)
    frames = np.stack(list(read_frames(film_of(comfy, entry, node.id)))).astype(int)
    return frames, entry["outputs"][sampled[0]]["text"][0]


def first_difference(a: np.ndarray, b: np.ndarray) -> int:
    """The number of the first frame that differs, or how many there are."""
    apart = np.abs(a - b).reshape(len(a), -1).max(axis=1)
    return int(np.argmax(apart > 0)) if apart.any() else len(a)


def test_the_film_changes_at_the_block_that_the_sampler_names(comfy: ComfyServer, files: Files):
    one, _ = film(comfy, files, lambda graph: timed(graph, "a boat drifts"))
    two, told = film(comfy, files, lambda graph: timed(graph, "a boat [0s] drifts [3s] sinks [4.5s] drifts"))
    print(told)
    assert "prompt 2 at 3 s starts at 2.81 s, block 5" in told  # Frame 45 of 16 a second.
    assert "prompt 3 at 4.5 s starts at" in told, "a text may come back"
    assert first_difference(one, two) == 45
    plain, _ = film(comfy, files, lambda graph: encoded(graph, "a boat drifts"))
    assert np.array_equal(one, plain)


def test_a_cut_leaves_the_frames_before_it_and_holds_the_first_one_behind_it(comfy: ComfyServer, files: Files):
    soft, _ = film(comfy, files, lambda graph: timed(graph, "a boat [0s] drifts [3s] sinks"))
    cut, told = film(comfy, files, lambda graph: timed(graph, "a boat [0s] drifts [3s cut] sinks"))
    print(told)
    assert "prompt 2 at 3 s starts at 2.81 s, block 5 (hard cut)" in told
    assert first_difference(soft, cut) == 45
    assert len(soft) == len(cut)
    held = [np.array_equal(cut[frame], cut[frame + 1]) for frame in range(44, 49)]
    assert held == [False, True, True, True, False]


def test_stock_text_nodes_one_by_one_give_the_same_as_one_text(comfy: ComfyServer, files: Files):
    def chained(graph: Graph) -> Link:
        settings = {"blend_seconds": 1.5, "recache": True}
        first = graph.add("PackForcingPromptAt", conditioning=encoded(graph, "a boat drifts"), seconds=0.0, **settings)[
            0
        ]
        second = encoded(graph, "a boat sinks")
        return graph.add("PackForcingPromptAt", conditioning=second, previous=first, seconds=3.0, **settings)[0]

    def combined(graph: Graph) -> Link:
        parts = [
            graph.add("PackForcingPromptAt", conditioning=encoded(graph, text), seconds=at, **settings)[0]
            for text, at in (("a boat drifts", 0.0), ("a boat sinks", 3.0))
        ]
        return graph.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1])[0]

    def after_a_plain_one(graph: Graph) -> Link:
        first, second = encoded(graph, "a boat drifts"), encoded(graph, "a boat sinks")
        return graph.add("PackForcingPromptAt", conditioning=second, previous=first, seconds=3.0, **settings)[0]

    settings = {"blend_seconds": 1.5, "recache": True}
    whole, _ = film(comfy, files, lambda graph: timed(graph, "a boat [0s] drifts [3s] sinks", **settings))
    at_once, _ = film(comfy, files, lambda graph: timed(graph, "a boat [0s] drifts [3s] sinks"))
    for by_nodes in (chained, combined, after_a_plain_one):
        assert np.array_equal(film(comfy, files, by_nodes)[0], whole)
    assert first_difference(whole, at_once) == 45


@pytest.mark.parametrize(
    ("timeline", "words"),
    [("[5s] late", "first prompt begins at 5 s"), ("[0s] a [xs] b [2q] c", "2q"), ("[0s] a [2s] ", "empty")],
)
def test_a_bad_timeline_is_refused_before_anything_runs(comfy: ComfyServer, files: Files, timeline: str, words: str):
    graph = Graph()
    sampled = stream(graph, our_loader(graph, files), **FAST)
    graph.prompt[sampled[0]]["inputs"]["positive"] = timed(graph, timeline)
    decode(graph, sampled, files)
    with pytest.raises(PromptRejectedError, match=words) as refused:
        comfy.client.queue(graph.prompt)
    assert str(refused.value).count(words) == 1, "at the input that is wrong, and at no other"


def test_prompts_combined_without_times_are_refused(comfy: ComfyServer, files: Files):
    graph = Graph()
    sampled = stream(graph, our_loader(graph, files), **FAST)
    both = {"conditioning_1": encoded(graph, "a boat"), "conditioning_2": encoded(graph, "a pond")}
    graph.prompt[sampled[0]]["inputs"]["positive"] = graph.add("ConditioningCombine", **both)[0]
    decode(graph, sampled, files)
    failed(comfy, graph, "PackForcingSampler", "2 combined prompts", "Timed Prompts")


def test_two_prompts_on_one_block_are_refused(comfy: ComfyServer, files: Files):
    graph = Graph()
    sampled = stream(graph, our_loader(graph, files), **FAST)
    graph.prompt[sampled[0]]["inputs"]["positive"] = timed(graph, "[0s] a [2s] b [2.1s] c")
    decode(graph, sampled, files)
    failed(comfy, graph, "PackForcingSampler", "same block", "0.75 s apart")
