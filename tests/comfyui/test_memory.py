"""Every memory preset in a real ComfyUI, and the compressor's parts on the way."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from packforcing_core.cache.config import POLICY_PRESETS
from packforcing_core.compressor.high_res import FUSIONS, build_high_res
from packforcing_core.compressor.weights import CompressorInfo, save_compressor
from packforcing_core.video.reader import probe, read_frames
from tests.checkpoints import SMALL_STOCK
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_render import film_of
from tests.small_compressor import trained_high_res


def preset(graph: Graph, name: str, **knobs) -> Link:
    """The KV Cache node at a preset, with some knobs changed."""
    policy = POLICY_PRESETS[name]
    values = {knob.name: getattr(policy, knob.name) for knob in policy.knobs()}
    return graph.add("PackForcingKVCache", policy=name, **{f"policy.{k}": v for k, v in (values | knobs).items()})[0]


def small_bank(name: str) -> dict:
    """Knobs by which a short test video comes to have a mid."""
    return {"sink_frames": 3, "recent_frames": 3, "top_k_blocks": 2} if name.startswith("PackForcing") else {}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [*((name, {}) for name in POLICY_PRESETS), ("PackForcing", {"selector": "future", "alignment": 0.35})],
)
def test_a_preset_renders_over_the_api(comfy: ComfyServer, files: Files, name: str, knobs: dict):
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    cache = preset(graph, name, **small_bank(name), **knobs)
    latents = stream(graph, our_loader(graph, files), kv_cache=cache, vae=vae, seconds=5.0, timesteps="1000, 500")
    film = decode(graph, latents, files)
    entry = comfy.client.run(graph.prompt)
    assert probe(film_of(comfy, entry, film.id)).frames == 81
    (in_view,) = [line for line in entry["outputs"][latents[0]]["text"][0].splitlines() if "in view at most:" in line]
    print(in_view)
    assert ("mid" in in_view) == name.startswith("PackForcing")


def test_the_memory_decodes_nothing_twice_and_the_film_is_that_of_a_second_vae(comfy: ComfyServer, files: Files):
    """With the sampler's VAE the frames come with the blocks; another VAE node makes the decoder do the work."""
    films = []
    for shared in (True, False):
        graph = Graph()
        vae = graph.add("VAELoader", vae_name=files.vae)[0]
        cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
        latents = stream(graph, our_loader(graph, files), kv_cache=cache, vae=vae, seconds=4.0, seed=21 + shared)
        film = decode(graph, latents, files, codec="lossless")
        if shared:
            graph.prompt[film.id]["inputs"]["vae"] = vae
        graph.prompt[latents[0]]["inputs"]["seed"] = 21
        entry = comfy.client.run(graph.prompt)
        films.append(np.stack(list(read_frames(film_of(comfy, entry, film.id)))))
    assert np.array_equal(*films)


def test_a_trained_compressor_of_either_form_rides_along_with_the_model(comfy: ComfyServer, files: Files):
    folder = comfy.models("packforcing_compressors")
    for fusion in FUSIONS:
        high_res = trained_high_res(SMALL_STOCK.dim, fusion)
        save_compressor(folder / f"{fusion}.safetensors", high_res, CompressorInfo("small", 3, "packforcing"))
    films = []
    for compressor in ("none", *(f"{fusion}.safetensors" for fusion in FUSIONS)):
        graph = Graph()
        model = graph.add(
            "PackForcingModelLoader",
            checkpoint=files.self_forcing,
            weight_dtype="default",
            preset="auto",
            compressor=compressor,
        )[0]
        model = graph.add("LoraLoaderModelOnly", model=model, lora_name=files.lora, strength_model=0.5)[0]
        vae = graph.add("VAELoader", vae_name=files.vae)[0]
        cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
        film = decode(graph, stream(graph, model, kv_cache=cache, vae=vae, seconds=4.0), files, codec="lossless")
        entry = comfy.client.run(graph.prompt)
        films.append(np.stack(list(read_frames(film_of(comfy, entry, film.id)))).astype(int))
    for one, other in combinations(films, 2):
        difference = np.abs(one - other).mean(axis=(1, 2, 3))
        first_changed = int(np.argmax(difference > 0))
        print(f"first changed frame {first_changed}, mean difference at the end {difference[-1]:.2f}")
        assert first_changed >= 4 * 3 * 3 - 3, "the first compressed block is seen by the block after sink and recent"
        assert difference[-1] > 0


def test_a_compressor_for_another_width_or_block_length_is_refused(comfy: ComfyServer, files: Files):
    folder = comfy.models("packforcing_compressors")
    save_compressor(folder / "wide.safetensors", build_high_res(256), CompressorInfo("wide", 3, "packforcing"))
    save_compressor(folder / "four.safetensors", build_high_res(128), CompressorInfo("four", 4, "packforcing"))
    for compressor, node, words in (
        ("wide.safetensors", "PackForcingModelLoader", ("256", "128")),
        (
            "four.safetensors",
            "PackForcingSampler",
            ("blocks of 4", "frames_per_block is 3", "Set it to 4"),
        ),
    ):
        graph = Graph()
        model = graph.add(
            "PackForcingModelLoader",
            checkpoint=files.self_forcing,
            weight_dtype="default",
            preset="auto",
            compressor=compressor,
        )[0]
        vae = graph.add("VAELoader", vae_name=files.vae)[0]
        cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
        decode(graph, stream(graph, model, kv_cache=cache, vae=vae, seconds=4.0), files)
        failed(comfy, graph, node, *words)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"top_k_blocks": 20, "bank_blocks": 16}, ("top_k_blocks is 20",)),
        ({"sink_frames": 4}, ("sink_frames is 4", "3 or 6, or to -1")),
        ({"recent_frames": 0}, ("recent_frames is 0",)),
    ],
)
def test_knobs_of_the_memory_that_contradict_each_other(comfy: ComfyServer, files: Files, knobs: dict, words):
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    cache = preset(graph, "PackForcing", **knobs)
    decode(graph, stream(graph, our_loader(graph, files), kv_cache=cache, vae=vae), files)
    failed(comfy, graph, "PackForcingSampler", *words)


def test_a_memory_that_compresses_needs_the_vae(comfy: ComfyServer, files: Files):
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), kv_cache=preset(graph, "PackForcing"), seconds=30.0)
    decode(graph, latents, files)
    failed(comfy, graph, "PackForcingSampler", "needs the VAE")
