"""The whole road in a real ComfyUI: checkpoint -> LoRA -> sampler -> streaming decode -> mp4."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from packforcing_core.video.reader import probe, read_frames
from tests.checkpoints import SMALL_STOCK, in_diffusers_names, lora_tensors, write_peft_lora
from tests.comfyui.client import Events, PromptFailedError
from tests.comfyui.graphs import Graph
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import HEIGHT, WIDTH, Files, decode, our_loader, stock_loader, stream, with_lora


def film_of(comfy: ComfyServer, entry: dict, node_id: str) -> Path:
    """The film that the history names."""
    (saved,) = entry["outputs"][node_id]["images"]
    assert saved["type"] == "output"
    return comfy.output / saved["subfolder"] / saved["filename"]


@pytest.mark.parametrize("loader", [our_loader, stock_loader])
def test_thirty_seconds_come_out_as_477_frames(comfy: ComfyServer, files: Files, loader):
    graph = Graph()
    model = with_lora(graph, loader(graph, files), files)
    film = decode(graph, stream(graph, model, seconds=30.0, frames_per_block=4, timesteps="1000, 500"), files)
    with comfy.client.events() as events:
        entry = comfy.client.run(graph.prompt)
    info = probe(film_of(comfy, entry, film.id))
    print(info)
    assert (info.frames, info.width, info.height, info.fps) == (477, WIDTH, HEIGHT, 16)
    assert sum(1 for _ in read_frames(film_of(comfy, entry, film.id))) == 477
    assert events.previews >= 10
    assert Image.open(io.BytesIO(events.last_preview.image)).size[0] >= WIDTH
    assert any("block 30/30" in text for _, text in events.texts)


def test_a_length_in_frames_takes_the_place_of_seconds(comfy: ComfyServer, files: Files):
    graph = Graph()
    film = decode(graph, stream(graph, our_loader(graph, files), seconds=30.0, frames=33, timesteps="1000"), files)
    info = probe(film_of(comfy, comfy.client.run(graph.prompt), film.id))
    print(info)
    assert info.frames == 33


def test_the_lora_changes_the_film_and_the_seed_repeats_it(comfy: ComfyServer, files: Files):
    def film(lora: bool, prefix: str) -> np.ndarray:
        graph = Graph()
        model = our_loader(graph, files)
        node = decode(
            graph, stream(graph, with_lora(graph, model, files) if lora else model), files, filename_prefix=prefix
        )
        return np.stack(list(read_frames(film_of(comfy, comfy.client.run(graph.prompt), node.id))))

    plain, again, changed = film(False, "video/plain"), film(False, "video/again"), film(True, "video/lora")
    assert np.array_equal(plain, again)
    difference = np.abs(plain.astype(int) - changed.astype(int)).mean()
    print(f"mean difference by the LoRA {difference:.1f} of 255")
    assert difference > 1


def test_a_lora_that_fits_in_part_says_what_of_it_changes_nothing(comfy: ComfyServer, files: Files):
    """As one made for image-to-video on a text-to-video model: its image keys have no layer here."""
    whole = {f"diffusion_model.{name}": tensor for name, tensor in lora_tensors(SMALL_STOCK, 4, 5).items()}
    image = {f"diffusion_model.blocks.0.cross_attn.k_img.lora_{half}.weight": torch.zeros(4, 4) for half in "AB"}
    save_file({**whole, **image}, comfy.models("loras") / "i2v.safetensors")

    def said(lora: str) -> str:
        graph = Graph()
        model = graph.add("LoraLoaderModelOnly", model=our_loader(graph, files), lora_name=lora, strength_model=0.7)[0]
        latents = stream(graph, model, seconds=0.5, timesteps="1000", render_name=f"part-{lora}".replace(".", "-"))
        decode(graph, latents, files)
        (text,) = comfy.client.run(graph.prompt)["outputs"][latents[0]]["text"]
        return text

    told = f"Note: 2 of {len(whole) + 2} tensors of the LoRA i2v.safetensors match no layer of this model"
    assert told in said("i2v.safetensors")
    save_file(whole, comfy.models("loras") / "t2v.safetensors")
    assert f"fits: all {len(whole)} tensors match layers of this model." in said("t2v.safetensors")


@pytest.mark.parametrize("names", ["transformer.{}", "{}", "diffusers", "peft", "LongLive"])
def test_a_lora_whose_names_comfyui_does_not_read_is_used_all_the_same(comfy: ComfyServer, files: Files, names: str):
    tensors = lora_tensors(SMALL_STOCK, 4, 5)
    if names == "diffusers":
        layers = {n.replace("lora_A.weight", "weight"): t for n, t in tensors.items() if "lora_A" in n}
        theirs = dict(zip(layers, in_diffusers_names(layers), strict=True))
        renamed = {
            f"transformer.{theirs[f'{layer}weight'].removesuffix('weight')}lora_{half}": tensors[f"{layer}lora_{half}"]
            for layer in (name.removesuffix("lora_A.weight") for name in tensors if "lora_A" in name)
            for half in ("A.weight", "B.weight")
        }
    elif names == "peft":
        renamed = {f"base_model.model.{n.replace('.weight', '.default.weight')}": t for n, t in tensors.items()}
    else:
        renamed = {names.format(name): tensor for name, tensor in tensors.items()}
    file = f"{zlib.crc32(names.encode())}.{'pt' if names == 'LongLive' else 'safetensors'}"
    if names == "LongLive":  # A dictionary in a dictionary, beside the critic's.
        write_peft_lora(comfy.models("loras") / file, SMALL_STOCK)
    else:
        save_file(renamed, comfy.models("loras") / file)

    def rendered(lora: str) -> tuple[np.ndarray, str]:
        graph = Graph()
        model = graph.add("LoraLoaderModelOnly", model=our_loader(graph, files), lora_name=lora, strength_model=0.7)[0]
        latents = stream(graph, model, seconds=0.5, timesteps="1000", render_name=f"lora-{lora}".replace(".", "-"))
        node = decode(graph, latents, files, codec="lossless")
        entry = comfy.client.run(graph.prompt)
        return np.stack(list(read_frames(film_of(comfy, entry, node.id)))), entry["outputs"][latents[0]]["text"][0]

    (read, _), (ours, said) = rendered(files.lora), rendered(file)
    print(f"largest difference {np.abs(read.astype(int) - ours.astype(int)).max()}; {said}")
    assert np.array_equal(read, ours)
    assert f"the LoRA {file} uses layer names that ComfyUI does not read" in said
    assert f"The LoRA {file} fits: all {len(tensors)} tensors match" in said


def test_other_encoder_settings_do_not_sample_again(comfy: ComfyServer, files: Files):
    graph = Graph()
    film = decode(graph, stream(graph, our_loader(graph, files), seed=11), files)
    comfy.client.run(graph.prompt)
    graph.prompt[film.id]["inputs"]["quality"] = 40
    with comfy.client.events() as events:
        entry = comfy.client.run(graph.prompt)
    assert film_of(comfy, entry, film.id).exists()
    texts = [text for node, text in events.texts if node == film.id and text.startswith("block")]
    print(texts[-1])
    assert texts
    assert all("reused" in text for text in texts)


def test_a_deleted_video_is_written_again_from_its_blocks_and_an_unchanged_one_is_not(comfy: ComfyServer, files: Files):
    graph = Graph()
    made = decode(graph, stream(graph, our_loader(graph, files), seed=18), files, filename_prefix="video/lost")
    films, ran = [], []
    for deleted in (False, False, True, False):
        if deleted:
            films[-1].unlink()
        with comfy.client.events() as events:
            films.append(film_of(comfy, comfy.client.run(graph.prompt), made.id))
        ran.append(any(node == made.id and text.startswith("block") for node, text in events.texts))
    print([film.name for film in films], ran)
    assert ran == [True, False, True, False]
    assert films[2].exists()
    assert films[2] == films[3]


def test_collected_latents_decode_in_the_stock_node_to_the_same_film(comfy: ComfyServer, files: Files):
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), seed=12, seconds=1.0)
    film = decode(graph, latents, files, codec="lossless")
    samples = graph.add("PackForcingCollectLatents", stream=latents)[0]
    images = graph.add("VAEDecode", samples=samples, vae=graph.add("VAELoader", vae_name=files.vae)[0])[0]
    saved = graph.add("SaveImage", images=images, filename_prefix="stock")
    entry = comfy.client.run(graph.prompt)
    ours = np.stack(list(read_frames(film_of(comfy, entry, film.id))))
    stock = [
        np.array(Image.open(comfy.output / picture["subfolder"] / picture["filename"]).convert("RGB"))
        for picture in entry["outputs"][saved.id]["images"]
    ]
    difference = np.abs(ours.astype(int) - np.stack(stock).astype(int)).max()
    print(f"largest difference {difference} of 255 over {len(stock)} frames")
    assert ours.std() > 1
    assert difference <= 1


def test_interruption_leaves_a_playable_film_and_a_rerun_goes_on(comfy: ComfyServer, files: Files):
    graph = Graph()
    film = decode(
        graph,
        stream(graph, our_loader(graph, files), seed=13, seconds=60.0, render_name="stopped"),
        files,
        filename_prefix="video/stopped",
        blocks_per_segment=1,
    )
    with comfy.client.events() as events:
        prompt_id = comfy.client.queue(graph.prompt)
        events.wait_for(lambda seen: any("block 4/" in text for _, text in seen.texts))
        comfy.client.interrupt(prompt_id)
        entry = comfy.client.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    folder = comfy.output / "packforcing" / "stopped"
    (growing,) = (folder / "film").glob("*.growing.mp4")
    frames = sum(1 for _ in read_frames(growing))
    print(f"{frames} frames in {growing.name}")
    assert frames >= 3 * 12 - 3
    known = len(list((folder / "blocks").glob("*.safetensors")))

    def goes_on(seen: Events) -> bool:
        return any(text.startswith("block") and "reused" not in text for _, text in seen.texts)

    graph.prompt[film.id]["inputs"]["filename_prefix"] = "video/went-on"
    with comfy.client.events() as events:
        prompt_id = comfy.client.queue(graph.prompt)
        events.wait_for(goes_on)  # How many blocks the first run made after it was asked to stop is not known.
        comfy.client.interrupt(prompt_id)
        comfy.client.wait(prompt_id)
    texts = [text for node, text in events.texts if node == film.id and text.startswith("block")]
    made = [int(text.split()[1].split("/")[0]) for text in texts if "reused" not in text]
    print(f"{known} blocks known | {texts[0]} | made {made}")
    assert known >= 4
    assert made == list(range(known + 1, known + 1 + len(made)))


def test_a_quality_that_the_codec_does_not_know_is_refused_before_sampling(comfy: ComfyServer, files: Files):
    graph = Graph()
    decode(graph, stream(graph, our_loader(graph, files), seed=14), files, quality=60)
    with comfy.client.events() as events, pytest.raises(PromptFailedError, match="quality is 60"):
        comfy.client.run(graph.prompt)
    assert not any("block 1/" in text for _, text in events.texts)
