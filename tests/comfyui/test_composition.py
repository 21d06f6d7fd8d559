"""What other nodes hang on a MODEL or a prompt is honoured or refused, never ignored."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.video import probe, read_frames
from tests.checkpoints import SMALL_STOCK, wan_state_dict, write_family, write_scaled_fp8_wan
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_memory import preset
from tests.comfyui.test_render import film_of


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("EasyCache", {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}),
        ("TorchCompileModel", {"backend": "inductor"}),
    ],
)
def test_a_node_that_wraps_the_model_is_refused(comfy: ComfyServer, files: Files, node: str, inputs: dict):
    graph = Graph()
    model = graph.add(node, model=our_loader(graph, files), **inputs)[0]
    decode(graph, stream(graph, model), files)
    failed(comfy, graph, "PackForcingSampler", "wrappers around the model")


def test_a_prompt_with_a_time_range_is_refused(comfy: ComfyServer, files: Files):
    graph = Graph()
    latents = stream(graph, our_loader(graph, files))
    ranged = graph.add("ConditioningSetTimestepRange", conditioning=graph.conditioning(), start=0.2, end=0.8)[0]
    graph.prompt[latents[0]]["inputs"]["positive"] = ranged
    decode(graph, latents, files)
    failed(comfy, graph, "PackForcingSampler", "end_percent, start_percent")


def test_the_stock_shift_node_is_honoured(comfy: ComfyServer, files: Files):
    films = []
    for node_shift, own_shift in ((0.0, 8.0), (8.0, 0.0), (0.0, 0.0)):
        graph = Graph()
        model = our_loader(graph, files)
        if node_shift:
            model = graph.add("ModelSamplingSD3", model=model, shift=node_shift)[0]
        film = decode(graph, stream(graph, model, shift=own_shift, seconds=1.0), files, codec="lossless")
        entry = comfy.client.run(graph.prompt)
        films.append(np.stack(list(read_frames(film_of(comfy, entry, film.id)))))
    assert np.array_equal(films[0], films[1])
    assert not np.array_equal(films[0], films[2])


def test_a_file_of_no_known_family_is_sampled_like_self_forcing_and_says_so(comfy: ComfyServer, files: Files):
    folder = comfy.models("diffusion_models")
    write_family(folder / "unknown", "self-forcing", wan_state_dict(SMALL_STOCK))[0].rename(folder / "my_finetune.pt")
    graph = Graph()
    model = graph.add("PackForcingModelLoader", checkpoint="my_finetune.pt", weight_dtype="default", preset="auto")[0]
    latents = stream(graph, model, seconds=5.0)
    decode(graph, latents, files)
    entry = comfy.client.run(graph.prompt)
    (text,) = entry["outputs"][latents[0]]["text"]
    print(text)
    assert "blocks of 3 latent frames" in text
    assert f"attends to at most {8 * 21} tokens" in text
    assert "Warning: nothing says how this checkpoint was trained" in text


def test_the_sampler_works_inside_a_node_that_expands(comfy: ComfyServer, files: Files):
    graph = Graph()
    cache = graph.add("PackForcingKVCache", policy="Sliding window (Self-Forcing)")[0]
    latents = graph.add(
        "PackForcingTestExpand", model=our_loader(graph, files), positive=graph.conditioning(), cache=cache
    )
    film = decode(graph, latents[0], files)
    entry = comfy.client.run(graph.prompt)
    assert probe(film_of(comfy, entry, film.id)).frames == 21


def test_a_knob_that_a_saved_workflow_lacks_takes_its_default(comfy: ComfyServer, files: Files):
    graph = Graph()
    cache = graph.add("PackForcingKVCache", policy="Sink + window (LongLive)")[0]
    latents = stream(graph, our_loader(graph, files), kv_cache=cache, seconds=5.0)
    decode(graph, latents, files)
    entry = comfy.client.run(graph.prompt)
    assert f"attends to at most {8 * 12} tokens" in entry["outputs"][latents[0]]["text"][0]


@pytest.mark.parametrize(
    ("knobs", "warns"), [({"mid_span": 0.0}, True), ({"mid_span": -1.0, "top_k_blocks": 2}, False), ({}, False)]
)
def test_more_positions_than_in_training_warn_without_a_trained_compressor(
    comfy: ComfyServer, files: Files, knobs: dict, warns: bool
):
    """With two blocks, -1 makes each longer than it is: that fits the training."""
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    cache = preset(graph, "PackForcing", **knobs)
    latents = stream(graph, our_loader(graph, files), kv_cache=cache, vae=vae, seconds=6.0)
    decode(graph, latents, files)
    text = comfy.client.run(graph.prompt)["outputs"][latents[0]]["text"][0]
    print(text)
    assert ("more than the 21 positions" in text) == ("Set mid_span to -1" in text) == warns


def test_an_interrupted_first_block_leaves_no_empty_film(comfy: ComfyServer, files: Files):
    graph = Graph()
    decode(graph, stream(graph, our_loader(graph, files), seconds=60.0, seed=77), files, filename_prefix="video/none")
    with comfy.client.events() as events:
        prompt_id = comfy.client.queue(graph.prompt)
        events.wait_for(lambda seen: bool(seen.of_type("progress")))
        comfy.client.interrupt(prompt_id)
        comfy.client.wait(prompt_id)
    for film in (comfy.output / "video").glob("none*"):
        assert probe(film).frames > 0


def test_dates_are_filled_into_file_names(comfy: ComfyServer, files: Files):
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), seconds=0.5)
    film = decode(graph, latents, files, filename_prefix="%date:yyyy-MM%/film")
    path = film_of(comfy, comfy.client.run(graph.prompt), film.id)
    print(path.parent.name)
    assert path.parent.name[:2] == "20"
    assert len(path.parent.name) == 7


def test_a_quantised_file_renders_through_our_loader(comfy: ComfyServer, files: Files):
    write_scaled_fp8_wan(comfy.models("diffusion_models") / "self_forcing_scaled_fp8.safetensors")
    graph = Graph()
    name = "self_forcing_scaled_fp8.safetensors"
    model = graph.add("PackForcingModelLoader", checkpoint=name, weight_dtype="default", preset="auto")[0]
    film = decode(graph, stream(graph, model, seconds=1.0), files)
    assert probe(film_of(comfy, comfy.client.run(graph.prompt), film.id)).frames == 21
