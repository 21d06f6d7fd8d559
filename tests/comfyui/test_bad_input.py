"""Whatever does not fit is refused before a block is sampled, with a reason, in the node and over the API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import (
    SMALL_STOCK,
    truncate,
    wan_state_dict,
    write_comfyui_lora,
    write_stock_wan,
)
from tests.comfyui.client import PromptFailedError, PromptRejectedError
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stock_loader, stream


def rejected(comfy: ComfyServer, graph: Graph, *words: str) -> None:
    """The server answers HTTP 400 and names the reason."""
    with pytest.raises(PromptRejectedError) as caught:
        comfy.client.queue(graph.prompt)
    print(str(caught.value).splitlines()[2])
    assert caught.value.status == 400
    for word in words:
        assert word in str(caught.value)


def failed(comfy: ComfyServer, graph: Graph, *words: str) -> None:
    """The prompt fails with the reason, and nothing was sampled."""
    with comfy.client.events() as events, pytest.raises(PromptFailedError) as caught:
        comfy.client.run(graph.prompt)
    print(str(caught.value).splitlines()[1])
    for word in words:
        assert word in str(caught.value)
    assert not any("block 1/" in text for _, text in events.texts)


def write_bad(folder: Path, kind: str) -> str:
    path = folder / f"bad-{kind}.safetensors"
    if kind == "lora":
        write_comfyui_lora(path)
    elif kind == "truncated":
        truncate(write_stock_wan(path))
    elif kind == "wrong-shape":
        weights = wan_state_dict(SMALL_STOCK)
        weights["blocks.1.self_attn.q.weight"] = torch.zeros(128, 64)
        save_file(weights, path)
    elif kind == "missing":
        weights = wan_state_dict(SMALL_STOCK)
        del weights["blocks.1.ffn.0.bias"]
        save_file(weights, path)
    return path.name


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("lora", ("LoRA", "base")),
        ("truncated", ("bad-truncated.safetensors",)),
        ("wrong-shape", ("blocks.1.self_attn.q.weight",)),
        ("missing", ("blocks.1.ffn.0.bias",)),
    ],
)
def test_a_file_that_is_no_whole_checkpoint(comfy: ComfyServer, files: Files, kind: str, words: tuple[str, ...]):
    name = write_bad(comfy.models("diffusion_models"), kind)
    graph = Graph()
    model = graph.add("PackForcingModelLoader", checkpoint=name, weight_dtype="default", preset="auto")[0]
    decode(graph, stream(graph, model), files)
    rejected(comfy, graph, "PackForcingModelLoader", *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 100}, ("width is 100", "multiple of 16", "96 and 112")),
        ({"height": 0}, ("height is 0",)),
        ({"seconds": 0.0}, ("seconds", "0.0 smaller than min of 0.1")),
        ({"seconds": -5.0}, ("seconds", "-5.0 smaller than min of 0.1")),
        ({"fps": 0.0}, ("fps", "0.0 smaller than min")),
        ({"timesteps": "1000, fast"}, ("timesteps", "1000, 750, 500, 250")),
        ({"timesteps": "250, 1000"}, ("falling",)),
    ],
)
def test_a_wrong_setting_of_the_sampler(comfy: ComfyServer, files: Files, settings: dict, words: tuple[str, ...]):
    graph = Graph()
    decode(graph, stream(graph, our_loader(graph, files), **settings), files)
    rejected(comfy, graph, "PackForcingSampler", *words)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"policy.window_frames": 4, "policy.sink_frames": 3, "policy.realign": True}, ("at least 6",)),
        ({"policy.window_frames": 2, "policy.sink_frames": 0, "policy.realign": False}, ("at least 3",)),
    ],
)
def test_knobs_that_contradict_each_other(comfy: ComfyServer, files: Files, knobs: dict, words: tuple[str, ...]):
    graph = Graph()
    cache = graph.add("PackForcingKVCache", policy="Sink + window (LongLive)", **knobs)[0]
    decode(graph, stream(graph, our_loader(graph, files), kv_cache=cache), files)
    failed(comfy, graph, "PackForcingSampler", "window_frames", *words)


def test_an_unknown_policy(comfy: ComfyServer, files: Files):
    graph = Graph()
    cache = graph.add("PackForcingKVCache", policy="everything-everywhere")[0]
    decode(graph, stream(graph, our_loader(graph, files), kv_cache=cache), files)
    failed(comfy, graph, "Unknown cache policy")


def test_a_vae_of_another_family(comfy: ComfyServer, files: Files):
    graph = Graph()
    film = decode(graph, stream(graph, our_loader(graph, files)), files)
    graph.prompt[film.id]["inputs"]["vae"] = graph.add("VAELoader", vae_name="pixel_space")[0]
    failed(comfy, graph, "PackForcingStreamingVAEDecode", "Wan2.1 VAE")


def test_a_model_of_another_family(comfy: ComfyServer, files: Files):
    name = "i2v.safetensors"
    weights = wan_state_dict(SMALL_STOCK)
    weights["patch_embedding.weight"] = torch.zeros(128, 36, 1, 2, 2)
    save_file(weights, comfy.models("diffusion_models") / name)
    graph = Graph()
    model = graph.add("PackForcingModelLoader", checkpoint=name, weight_dtype="default", preset="auto")[0]
    decode(graph, stream(graph, model), files)
    rejected(comfy, graph, "image-to-video")


@pytest.mark.parametrize("prefix", ["../outside/film", "occupied/film"])
def test_a_folder_that_cannot_be_written(comfy: ComfyServer, files: Files, prefix: str):
    (comfy.output / "occupied").touch()
    graph = Graph()
    decode(graph, stream(graph, our_loader(graph, files)), files, filename_prefix=prefix)
    failed(comfy, graph, "PackForcingStreamingVAEDecode", "Cannot write")


def test_a_likely_bidirectional_file_warns_on_the_node_and_in_the_history(comfy: ComfyServer, files: Files):
    name = "wan2.1_t2v_1.3B_fp16.safetensors"
    write_stock_wan(comfy.models("diffusion_models") / name, causal=False)
    graph = Graph()
    loader = graph.add("PackForcingModelLoader", checkpoint=name, weight_dtype="default", preset="auto")
    decode(graph, stream(graph, loader[0], seconds=0.5), files)
    with comfy.client.events() as events:
        entry = comfy.client.run(graph.prompt)
    (text,) = entry["outputs"][loader.id]["text"]
    print(text)
    assert "Warning" in text
    assert "bidirectional" in text
    assert (loader.id, text) in events.texts


def test_a_stock_loaded_file_without_a_mark_warns_on_the_sampler(comfy: ComfyServer, files: Files):
    write_stock_wan(comfy.models("diffusion_models") / "unmarked.safetensors", causal=False)
    graph = Graph()
    model = graph.add("UNETLoader", unet_name="unmarked.safetensors", weight_dtype="default")[0]
    latents = stream(graph, model, seconds=0.5)
    decode(graph, latents, files)
    entry = comfy.client.run(graph.prompt)
    (text,) = entry["outputs"][latents[0]]["text"]
    assert "Warning: nothing says how this checkpoint was trained" in text


def test_another_block_length_than_the_trained_one_warns(comfy: ComfyServer, files: Files):
    graph = Graph()
    latents = stream(graph, stock_loader(graph, files), seconds=0.5, frames_per_block=2)
    decode(graph, latents, files)
    entry = comfy.client.run(graph.prompt)
    (text,) = entry["outputs"][latents[0]]["text"]
    print(text)
    assert "trained with blocks of 1" in text


def test_a_lora_that_fits_nothing_is_named_before_anything_is_sampled(comfy: ComfyServer, files: Files):
    save_file(
        {f"strange.part.{kind}.weight": torch.zeros(4, 4) for kind in ("lora_A", "lora_B")},
        comfy.models("loras") / "strange.safetensors",
    )
    graph = Graph()
    model = graph.add(
        "LoraLoaderModelOnly", model=our_loader(graph, files), lora_name="strange.safetensors", strength_model=1.0
    )[0]
    decode(graph, stream(graph, model), files)
    failed(comfy, graph, "strange.safetensors", "matches this model", "strange.part")


def test_a_lora_of_a_larger_model_is_named_before_anything_is_sampled(comfy: ComfyServer, files: Files):
    """Its names are those of the model and its shapes are not: ComfyUI logs that on its console and goes on."""
    write_comfyui_lora(comfy.models("loras") / "larger.safetensors", replace(SMALL_STOCK, dim=256))
    graph = Graph()
    model = graph.add(
        "LoraLoaderModelOnly", model=our_loader(graph, files), lora_name="larger.safetensors", strength_model=1.0
    )[0]
    decode(graph, stream(graph, model), files)
    failed(comfy, graph, "larger.safetensors", "matches no layer", "made for a Wan of width 256")


LINKED = {
    "PackForcingSampler.seconds": -5.0,
    "PackForcingSampler.fps": 1000.0,
    "PackForcingSampler.width": 100,
    "PackForcingSampler.height": 99_999,
    "PackForcingSampler.seed": -1,
    "PackForcingSampler.frames_per_block": 65,
    "PackForcingSampler.shift": -3.0,
    "PackForcingSampler.retake_from": -1.0,
    "PackForcingStreamingVAEDecode.blocks_per_segment": 0,
    "PackForcingStreamingVAEDecode.last_frames": 10**6,
    "PackForcingStreamingVAEDecode.quality": 64,
    "PackForcingPromptAt.blend_seconds": -1.0,
    "PackForcingStartFrom.seconds": 0.0,
    "PackForcingStartFrom.denoise": 1.5,
}


@pytest.mark.parametrize("widget", LINKED)
def test_a_number_out_of_its_range_by_a_link_names_the_widget(comfy: ComfyServer, files: Files, widget: str):
    """The server looks at widgets alone; what comes by a link is met in the node."""
    graph, (kind, name), value = Graph(), widget.split("."), LINKED[widget]
    latents = stream(graph, our_loader(graph, files), seconds=0.5)
    sampler = graph.prompt[latents[0]]["inputs"]
    start = {"mode": "continue", "seconds": 1.0, "denoise": 0.5, "show_source": "auto"}
    if kind == "PackForcingStartFrom":
        sampler["start"] = graph.add(kind, **start)[0]
    if kind == "PackForcingPromptAt":
        timed = {"seconds": 0.0, "blend_seconds": 0.0, "recache": False}
        sampler["positive"] = graph.add(kind, conditioning=sampler["positive"], **timed)[0]
    decode(graph, latents, files)
    (node,) = [made for made in graph.prompt.values() if made["class_type"] == kind]
    node["inputs"][name] = graph.add("PrimitiveInt" if isinstance(value, int) else "PrimitiveFloat", value=value)[0]
    failed(comfy, graph, f"{name} is {value}", "expected" if name != "width" else "must be")


def test_a_file_name_may_have_the_values_of_widgets_and_names_those_that_are_not_there(
    comfy: ComfyServer, files: Files
):
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), seconds=0.5, seed=77)
    node = decode(graph, latents, files, filename_prefix="video/%PackForcingSampler.seed%_%PackForcingSampler.fps%")
    (saved,) = comfy.client.run(graph.prompt)["outputs"][node.id]["images"]
    assert saved["filename"].startswith("77_16.0_")
    graph.prompt[node.id]["inputs"]["filename_prefix"] = "video/%Nobody.seed%"
    failed(comfy, graph, "%Nobody.seed%", "no node 'Nobody'")
