"""The miniature on the stock sockets: with stock nodes before and behind it, and the same film as without ComfyUI."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.cache.config import POLICY_PRESETS
from packforcing_core.folder.listing import renders
from packforcing_core.geometry import VideoGeometry
from packforcing_core.miniature import load as miniature
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_compression, latent_events
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.vae.config import unnormalise
from packforcing_core.video import probe
from tests.comfyui.client import PromptFailedError
from tests.comfyui.graphs import Graph, Link, Node
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import stream
from tests.comfyui.test_memory import preset
from tests.comfyui.test_render import film_of

PROMPT = "a red circle and a blue square bounce on a dark background"
WIDTH, HEIGHT = miniature.SIZE
WINDOW = "Sliding window (Self-Forcing)"


def demo(graph: Graph, dtype: str = "fp32") -> Node:
    return graph.add("PackForcingDemoModels", checkpoint="PackForcing miniature", weight_dtype=dtype)


def encoded(graph: Graph, clip: Link, text: str = PROMPT) -> Link:
    return graph.add("CLIPTextEncode", clip=clip, text=text)[0]


def demo_stream(graph: Graph, models: Node, text: str = PROMPT, **settings) -> Link:
    settings = {"seconds": 2.0, "width": WIDTH, "height": HEIGHT, "vae": models[2], **settings}
    latents = stream(graph, models[0], **settings)
    graph.prompt[latents[0]]["inputs"]["positive"] = encoded(graph, models[1], text)
    return latents


def test_the_loader_with_stock_text_encode_renders_a_film_and_lists_its_words(comfy: ComfyServer):
    graph = Graph()
    models = demo(graph, "default")
    latents = demo_stream(graph, models, kv_cache=preset(graph, "PackForcing"))
    film = graph.add(
        "PackForcingStreamingVAEDecode",
        stream=latents,
        vae=models[2],
        filename_prefix="video/demo_test",
        codec="h264",
        quality=-1,
        blocks_per_segment=4,
        last_frames=1,
    )
    entry = comfy.client.run(graph.prompt)
    told = entry["outputs"][models.id]["text"][0]
    sampled = next(out["text"][0] for node, out in entry["outputs"].items() if node == latents[0])
    print(told, sampled, sep="\n")
    assert "circle" in told
    assert "128x64 pixels, blocks of 4 latent frames" in told
    assert "2 blocks of 4" in sampled
    assert "Warning" not in sampled
    info = probe(film_of(comfy, entry, film.id))
    assert (info.frames, info.width, info.height) == (29, WIDTH, HEIGHT)


def test_the_film_is_the_one_that_is_made_without_comfyui(comfy: ComfyServer):
    """Sampled in float32 with the memory that compresses, and decoded by the stock node."""
    graph = Graph()
    models = demo(graph)
    latents = demo_stream(graph, models, kv_cache=preset(graph, "PackForcing"), seconds=6.0, seed=7)
    collected = graph.add("PackForcingCollectLatents", stream=latents)[0]
    graph.add("SaveLatent", samples=collected, filename_prefix="latents/demo_test")
    pictures = graph.add("VAEDecode", samples=collected, vae=models[2])[0]
    graph.add("SaveImage", images=pictures, filename_prefix="demo_frames/demo_test")
    comfy.client.run(graph.prompt)
    assert renders(comfy.output / "packforcing")[0].state == "finished", "though it is no video"
    theirs = load_file(next((comfy.output / "latents").glob("demo_test*")))["latent_tensor"]

    compressor = miniature.load_compressor(dtype=torch.float32)
    model, vae, context = miniature.load_model(), miniature.load_vae(), miniature.load_text()([PROMPT])
    geometry = VideoGeometry.from_seconds(6.0, width=WIDTH, height=HEIGHT, fps=16.0, frames_per_block=4)
    policy = POLICY_PRESETS["PackForcing"].fitted_to(miniature.MEMORY.mid_span)
    recipe = Recipe(geometry, policy, Denoising.of_family(miniature.FAMILY), 7)
    compression = build_compression(model, vae, compressor and compressor.high_res)
    with torch.inference_mode():
        events = latent_events(model, context, recipe, compression=compression)
        ours = torch.cat([event.latents for event in events if isinstance(event, BlockDone)], dim=2)
    apart = unnormalise(ours) - theirs
    relative = (apart.square().mean().sqrt() / theirs.std()).item()
    by_block = [f"{part.abs().max().item():.1e}" for part in apart.split(4, dim=2)]
    print(f"{list(ours.shape)}, relative difference {relative:.1e}; largest by block {', '.join(by_block)}")
    # Rounding grows about twofold with every block that attends to the one before.
    assert apart[:, :, :4].abs().max() < 1e-3
    assert relative < 3e-3
    frames = sorted((comfy.output / "demo_frames").glob("demo_test*"))
    assert len(frames) == geometry.pixel_frames


def test_stock_sampling_and_decoding_take_the_miniature(comfy: ComfyServer):
    """ComfyUI's own block-by-block sampler, and an ordinary KSampler that sees the whole clip at once."""
    graph = Graph()
    models = demo(graph)
    positive = encoded(graph, models[1])
    empty = graph.add("EmptyARVideoLatent", width=WIDTH, height=HEIGHT, length=29, batch_size=1)[0]
    block_by_block = graph.add(
        "SamplerCustom",
        model=models[0],
        add_noise=True,
        noise_seed=1,
        cfg=1.0,
        positive=positive,
        negative=positive,
        sampler=graph.add("SamplerARVideo", num_frame_per_block=4)[0],
        sigmas=graph.add("BasicScheduler", model=models[0], scheduler="simple", steps=4, denoise=1.0)[0],
        latent_image=empty,
    )[0]
    whole = graph.add(
        "KSampler",
        model=models[0],
        seed=1,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=positive,
        latent_image=empty,
        denoise=1.0,
    )[0]
    films = {}
    for name, samples in (("blocks", block_by_block), ("whole", whole)):
        pictures = graph.add("VAEDecode", samples=samples, vae=models[2])[0]
        film = graph.add("CreateVideo", images=pictures, fps=16.0)[0]
        saved = graph.add("SaveVideo", video=film, filename_prefix=f"video/demo_{name}", format="mp4", codec="h264")
        films[name] = saved.id
    entry = comfy.client.run(graph.prompt)
    for name, node in films.items():
        info = probe(film_of(comfy, entry, node))
        print(name, info)
        assert (info.frames, info.width, info.height) == (29, WIDTH, HEIGHT)


def test_a_stock_lora_changes_the_film(comfy: ComfyServer):
    down, up = torch.randn(4, 256), torch.randn(256, 4)
    name = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    lora = {name.format("A"): down / 4, name.format("B"): up / 4}
    save_file(lora, comfy.models("loras") / "miniature-lora.safetensors")
    latents = []
    for strength in (0.0, 1.0):
        graph = Graph()
        models = demo(graph)
        choice = {"lora_name": "miniature-lora.safetensors", "strength_model": strength}
        patched = graph.add("LoraLoaderModelOnly", model=models[0], **choice)
        samples = demo_stream(graph, models, seconds=0.5, seed=8)
        graph.prompt[samples[0]]["inputs"]["model"] = patched[0]
        collected = graph.add("PackForcingCollectLatents", stream=samples)[0]
        graph.add("SaveLatent", samples=collected, filename_prefix=f"latents/lora_{strength:g}")
        comfy.client.run(graph.prompt)
        latents.append(load_file(next((comfy.output / "latents").glob(f"lora_{strength:g}*")))["latent_tensor"])
    difference = (latents[0] - latents[1]).abs().max().item()
    print(f"largest difference {difference:.2f}")
    assert difference > 1e-2


def test_of_loras_for_other_models_none_is_advised(comfy: ComfyServer):
    stable = {f"lora_unet_down_blocks_0.lora_{part}.weight": torch.zeros(4, 4) for part in ("down", "up")}
    save_file(stable, comfy.models("loras") / "stable-diffusion.safetensors")
    wan = {f"diffusion_model.blocks.0.self_attn.q.lora_{half}.weight": torch.zeros(1536, 1536) for half in "AB"}
    save_file(wan, comfy.models("loras") / "wan-1.3b.safetensors")
    for name in ("stable-diffusion", "wan-1.3b"):
        graph = Graph()
        models = demo(graph)
        choice = {"lora_name": f"{name}.safetensors", "strength_model": 1.0}
        samples = demo_stream(graph, models, seconds=0.5)
        graph.prompt[samples[0]]["inputs"]["model"] = graph.add("LoraLoaderModelOnly", model=models[0], **choice)[0]
        graph.add("PackForcingCollectLatents", stream=samples)
        graph.add("PreviewAny", source=[str(len(graph.prompt)), 0])
        with pytest.raises(PromptFailedError, match="No LoRA fits a miniature such as the demo's") as refused:
            comfy.client.run(graph.prompt)
        assert "Use a LoRA made for" not in str(refused.value)


def test_too_many_words_are_refused_and_unknown_ones_are_told(comfy: ComfyServer):
    graph = Graph()
    models = demo(graph)
    graph.add("PackForcingCollectLatents", stream=demo_stream(graph, models, "a red circle " * 9))
    graph.add("PreviewAny", source=[str(len(graph.prompt)), 0])
    with pytest.raises(PromptFailedError, match="has 27 words"):
        comfy.client.run(graph.prompt)

    graph = Graph()
    models = demo(graph)
    text = encoded(graph, models[1], "a red walrus bounces")
    settings = {"prefix": "a red", "blend_seconds": 0.0, "recache": False}
    timeline = "[0s] walrus bounces\n[1s] circle bounces\n[2s] otter bounces"
    timed = graph.add("PackForcingTimedPrompts", clip=models[1], timeline=timeline, **settings)[0]
    for shown in (text, timed):
        graph.add("PreviewAny", source=shown)
    first = told_on(comfy, graph)
    assert "Warning: the PackForcing miniature does not know these words and ignores them: walrus." in comfy.log_text()
    assert "walrus.\nDemo Models lists" in first[text[0]][-1]
    # What each of its texts lacks stands above what the node says itself.
    lines = first[timed[0]][-1].splitlines()
    assert [line.split(": ")[-1][:8] for line in lines[:3]] == ["walrus.", "Demo Mod", "otter."]
    assert lines[3:] == [f"{n} s: a red {what} bounces" for n, what in enumerate(("walrus", "circle", "otter"))]
    graph.prompt[text[0]]["inputs"]["text"] = ""
    assert told_on(comfy, graph)[text[0]][-1].startswith("Warning: this prompt is empty")
    graph.prompt[text[0]]["inputs"]["text"] = "a (red:1.2) circle bounces"
    (weighted,) = told_on(comfy, graph)[text[0]]
    assert weighted == "Warning: weights such as (red:1.2) have no effect in the miniature."
    graph.prompt[text[0]]["inputs"]["text"] = "a red circle bounces"
    again = told_on(comfy, graph)
    assert again[text[0]] == [""], "what was said of the text before is taken back"
    assert timed[0] not in again, "it has not run again"


def test_another_size_than_the_trained_one_is_warned_about(comfy: ComfyServer):
    graph = Graph()
    latents = demo_stream(graph, demo(graph), width=HEIGHT, height=WIDTH)
    graph.add("PreviewAny", source=latents)
    (said,) = told_on(comfy, graph)[latents[0]]
    print(said)
    (warning,) = (line for line in said.splitlines() if "was trained at" in line)
    assert warning.startswith("Warning: ")
    assert "trained at 128x64 pixels only, but the size is 64x128" in warning


def test_progress_beyond_a_minute_is_told_in_seconds_as_the_length_is(comfy: ComfyServer):
    graph = Graph()
    latents = demo_stream(graph, demo(graph), seconds=77.0, fps=1.0, timesteps="1000", kv_cache=preset(graph, WINDOW))
    collect = graph.add("PackForcingCollectLatents", stream=latents)
    graph.add("SaveLatent", samples=collect[0], filename_prefix="latents/progress")
    said = "\n".join(told_on(comfy, graph)[collect.id])
    print(said)
    assert "block 4/5 | 61.0 s of 77.0 s | " in said
    assert not re.search(r"\d:\d\d of|of \d+:", said)


def told_on(comfy: ComfyServer, graph: Graph) -> dict[str, list[str]]:
    """Runs a graph; what its nodes said, in their order."""
    with comfy.client.events() as events:
        comfy.client.run(graph.prompt)
    told: dict[str, list[str]] = {}
    for node, text in events.texts:
        told.setdefault(node, []).append(text)
    return told
