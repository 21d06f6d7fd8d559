"""What artists already use, around our nodes in a real ComfyUI: quantised models, small decoders, stock video nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from packforcing_core.folder.files import read_tensors
from packforcing_core.vae.streaming import to_frames
from packforcing_core.vae.tiny import TinyDecoder, TinyVAE
from packforcing_core.video import probe, read_frames
from tests.checkpoints import CAUSAL_METADATA, SMALL_STOCK, wan_state_dict
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import HEIGHT, WIDTH, Files, decode, our_loader, stock_loader, stream, with_lora
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_memory import preset
from tests.comfyui.test_render import film_of
from tests.vaes import stock_vae

FAST = {"seconds": 2.0, "timesteps": "1000, 500"}


def frames_of(comfy: ComfyServer, entry: dict, node: str) -> np.ndarray:
    return np.stack(list(read_frames(film_of(comfy, entry, node)))).astype(int)


def pictures_of(comfy: ComfyServer, entry: dict, node: str) -> np.ndarray:
    """The pictures of a Save Image node."""
    saved = [comfy.output / picture["subfolder"] / picture["filename"] for picture in entry["outputs"][node]["images"]]
    return np.stack([np.array(Image.open(path).convert("RGB")) for path in saved]).astype(int)


def film(comfy: ComfyServer, graph: Graph, node: str) -> np.ndarray:
    return frames_of(comfy, comfy.client.run(graph.prompt), node)


def quantised(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The layers' Linears as 8-bit codes with a scale a row; and the same as the plain weights that these codes are."""
    codes, plain = dict(tensors), dict(tensors)
    for name in [n for n in tensors if n.startswith("blocks.") and n.endswith("weight") and tensors[n].ndim == 2]:
        scale = tensors[name].abs().amax(dim=1, keepdim=True) / 127
        codes[name] = (tensors[name] / scale).round().to(torch.int8)
        codes[name.replace("weight", "row_scale")] = scale
        plain[name] = codes[name].float() * scale
    return codes, plain


@pytest.fixture(scope="module")
def quantised_files(comfy: ComfyServer) -> tuple[str, str]:
    """A file of codes, and one of the weights that these codes stand for."""
    codes, plain = quantised(wan_state_dict(SMALL_STOCK))
    folder = comfy.models("diffusion_models")
    save_file(codes, folder / "codes.safetensors", CAUSAL_METADATA)
    save_file(plain, folder / "decoded.safetensors", CAUSAL_METADATA)
    return "codes.safetensors", "decoded.safetensors"


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_with_operations_of_its_own_gives_the_film_of_its_weights(
    comfy: ComfyServer, files: Files, quantised_files: tuple[str, str], lora: bool
):
    """As a GGUF loader makes it: Linears that hold codes and dequantise in their forward."""

    def rendered(load) -> np.ndarray:
        graph = Graph()
        model = with_lora(graph, load(graph), files) if lora else load(graph)
        return film(comfy, graph, decode(graph, stream(graph, model, **FAST), files, codec="lossless").id)

    codes, decoded = quantised_files
    ours = rendered(lambda graph: graph.add("PackForcingTestQuantisedLoader", file=codes)[0])
    plain = rendered(lambda graph: graph.add("UNETLoader", unet_name=decoded, weight_dtype="default")[0])
    whole = rendered(lambda graph: graph.add("UNETLoader", unet_name=files.stock, weight_dtype="default")[0])
    difference, loss = np.abs(ours - plain).max(), np.abs(ours - whole).mean()
    print(f"largest difference {difference} of 255; 8 bits themselves change the mean by {loss:.2f}")
    assert difference <= 1
    assert loss > 0


def render_name(entry: dict, node: str) -> str:
    return next(line for line in entry["outputs"][node]["text"][0].splitlines() if line.startswith("render ")).split()[
        1
    ]


def test_two_files_of_codes_have_two_identities(comfy: ComfyServer, quantised_files: tuple[str, str]):
    """The same codes under other scales, in a file of the same size: what the layers really hold tells them apart.

    So does the type in which the codes become weights.
    """
    codes, _ = quantised_files
    folder = comfy.models("diffusion_models")
    other = {n: t * 1.5 if n.endswith("row_scale") else t for n, t in load_file(folder / codes).items()}
    save_file(other, folder / "other-codes.safetensors", CAUSAL_METADATA)
    names = []
    for file, half in ((codes, False), ("other-codes.safetensors", False), (codes, False), (codes, True)):
        graph = Graph()
        model = graph.add("PackForcingTestQuantisedLoader", file=file, half=half)[0]
        latents = stream(graph, model, seconds=0.5, timesteps="1000", seed=71)
        graph.add("PackForcingCollectLatents", stream=latents)
        graph.add("SaveLatent", samples=[str(len(graph.prompt)), 0], filename_prefix="latents/codes")
        names.append(render_name(comfy.client.run(graph.prompt), latents[0]))
        comfy.client.free()
    print(names)
    assert names[0] == names[2]
    assert len(set(names)) == 3


def test_a_replaced_cross_attention_is_honoured_and_other_parts_are_refused(comfy: ComfyServer, files: Files):
    """KJNodes' WanVideoNAG replaces the one, others of its nodes the others."""

    def rendered(part: str | None, strength: float) -> tuple[np.ndarray, str]:
        graph = Graph()
        model = stock_loader(graph, files)
        if part:
            model = graph.add("PackForcingTestReplace", model=model, part=part, strength=strength)[0]
        latents = stream(graph, model, **FAST)
        node = decode(graph, latents, files, codec="lossless").id
        entry = comfy.client.run(graph.prompt)
        return frames_of(comfy, entry, node), render_name(entry, latents[0])

    plain, _ = rendered(None, 1.0)
    same, same_name = rendered("cross_attn", 1.0)
    weak, weak_name = rendered("cross_attn", 0.2)
    print(f"by the same: {np.abs(same - plain).max()}, by another: {np.abs(weak - plain).max()} of 255")
    assert np.abs(same - plain).max() <= 1
    assert np.abs(weak - plain).max() > 1
    assert same_name != weak_name
    graph = Graph()
    model = graph.add("PackForcingTestReplace", model=stock_loader(graph, files), part="self_attn", strength=1.0)[0]
    decode(graph, stream(graph, model, **FAST), files)
    failed(comfy, graph, "self-attention", "does not support")


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("ConditioningSetAreaStrength", "strength"),
        ("ReferenceLatent", "reference_latents"),
        ("WanVaceToVideo", "vace_frames"),
    ],
)
def test_what_else_hangs_on_a_prompt_is_refused_by_name(comfy: ComfyServer, files: Files, kind: str, named: str):
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), **FAST)
    decode(graph, latents, files)
    inputs = graph.prompt[latents[0]]["inputs"]
    if kind == "ReferenceLatent":
        empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
        inputs["positive"] = graph.add(kind, conditioning=inputs["positive"], latent=empty)[0]
    elif kind == "WanVaceToVideo":
        vae, prompt = graph.add("VAELoader", vae_name=files.vae)[0], inputs["positive"]
        size = {"width": WIDTH, "height": HEIGHT, "length": 5, "batch_size": 1, "strength": 1.0}
        inputs["positive"] = graph.add(kind, positive=prompt, negative=prompt, vae=vae, **size)[0]
    else:
        inputs["positive"] = graph.add(kind, conditioning=inputs["positive"], strength=0.5)[0]
    failed(comfy, graph, named, "does not support")


def test_a_narrower_vae_decodes_through_the_stock_loader(comfy: ComfyServer, files: Files):
    """LightVAE is the Wan VAE with narrower layers; the stock loader reads the width off the file."""
    save_file(stock_vae(4).state_dict(), comfy.models("vae") / "lightvae-small.safetensors")
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), **FAST)
    vae = graph.add("VAELoader", vae_name="lightvae-small.safetensors")[0]
    node = decode(graph, latents, files, codec="lossless")
    graph.prompt[node.id]["inputs"]["vae"] = vae
    images = graph.add("VAEDecode", samples=graph.add("PackForcingCollectLatents", stream=latents)[0], vae=vae)[0]
    stock = graph.add("SaveImage", images=images, filename_prefix="light")
    entry = comfy.client.run(graph.prompt)
    ours, theirs = frames_of(comfy, entry, node.id), pictures_of(comfy, entry, stock.id)
    print(f"largest difference to the stock decode: {np.abs(ours - theirs).max()} of 255")
    assert np.abs(ours - theirs).max() <= 1 < ours.std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tiny_vae_decodes_while_sampling(comfy: ComfyServer, files: Files, dtype: torch.dtype):
    """TAEHV's file layout through the stock loader: in float32 it is lighttaew2_1, and the stock decode agrees; in
    float16 it is taew2_1, which the stock node takes for Hunyuan's and scales.
    """
    name = f"tiny-{dtype.itemsize}.safetensors"
    torch.manual_seed(1)
    tiny = TinyVAE((256, 128, 64, 64), raw_latents=dtype == torch.float32).requires_grad_(False)
    for number in (1, 8, 14, 20, 22):  # Random layers hardly hear their input otherwise.
        tiny.decoder[number].weight.mul_(3)
    save_file({k: v.to(dtype) for k, v in tiny.state_dict().items()}, comfy.models("vae") / name)
    graph = Graph()
    latents = stream(graph, our_loader(graph, files), **FAST, render_name=f"tiny-{dtype.itemsize}")
    vae = graph.add("VAELoader", vae_name=name)[0]
    node = decode(graph, latents, files, codec="lossless")
    graph.prompt[node.id]["inputs"]["vae"] = vae
    images = graph.add("VAEDecode", samples=graph.add("PackForcingCollectLatents", stream=latents)[0], vae=vae)[0]
    stock = graph.add("SaveImage", images=images, filename_prefix="tiny")
    entry = comfy.client.run(graph.prompt)
    ours, theirs = frames_of(comfy, entry, node.id), pictures_of(comfy, entry, stock.id)
    blocks = comfy.output / "packforcing" / f"tiny-{dtype.itemsize}" / "blocks"
    whole = torch.cat([read_tensors(path)[0]["latents"] for path in sorted(blocks.glob("*.safetensors"))], dim=2)
    expected = to_frames(TinyDecoder(tiny.to(dtype).float()).push(whole)).astype(int)
    print(f"largest difference to the stock node: {np.abs(ours - theirs).max()} of 255")
    print(f"largest difference to the decoder at once: {np.abs(ours - expected).max()} of 255")
    assert np.abs(ours - expected).max() <= 1 < ours.std()
    assert (np.abs(ours - theirs).max() <= 1) == (dtype == torch.float32)


def test_a_tiny_vae_cannot_compress_the_past(comfy: ComfyServer, files: Files):
    save_file(TinyVAE((256, 128, 64, 64), True).state_dict(), comfy.models("vae") / "tiny-light.safetensors")
    graph = Graph()
    vae = graph.add("VAELoader", vae_name="tiny-light.safetensors")[0]
    cache = preset(graph, "PackForcing", sink_frames=3, recent_frames=3)
    decode(graph, stream(graph, our_loader(graph, files), kv_cache=cache, vae=vae, seconds=4.0), files)
    failed(comfy, graph, "PackForcingSampler", "tiny autoencoder", "Wan2.1 VAE")


SAVED = {"filename_prefix": "video/stock", "format": "auto", "codec": "auto"}


def sliced(graph: Graph, video: Link, start: float, seconds: float) -> Link:
    return graph.add("Video Slice", video=video, start_time=start, duration=seconds, strict_duration=False)[0]


def test_stock_video_nodes_take_our_film_whole_and_piece_by_piece(comfy: ComfyServer, files: Files):
    """Save Video; and Video Slice -> Get Video Components -> image nodes -> Create Video, a chunk at a time."""
    graph = Graph()
    node = decode(graph, stream(graph, our_loader(graph, files), **FAST), files, codec="lossless")
    saved = graph.add("SaveVideo", video=node[0], **SAVED)
    pieces, pictures = [], []
    for start in (0.0, 1.0):
        parts = graph.add("GetVideoComponents", video=sliced(graph, node[0], start, 1.0))
        pictures.append(graph.add("SaveImage", images=parts[0], filename_prefix="piece"))
        larger = graph.add("ImageScaleBy", image=parts[0], upscale_method="nearest-exact", scale_by=2.0)[0]
        video = graph.add("CreateVideo", images=larger, fps=parts[2])[0]
        pieces.append(graph.add("SaveVideo", video=video, **SAVED))
    last = graph.add("SaveImage", images=node[1], filename_prefix="last")
    entry = comfy.client.run(graph.prompt)
    info = probe(film_of(comfy, entry, saved.id))
    assert (info.frames, info.width, info.height, info.fps) == (33, WIDTH, HEIGHT, 16)
    films = [probe(film_of(comfy, entry, piece.id)) for piece in pieces]
    assert [(f.frames, f.width, f.height) for f in films] == [(16, 2 * WIDTH, 2 * HEIGHT)] * 2
    ours = frames_of(comfy, entry, node.id)
    for piece, start in zip(pictures, (0, 16), strict=True):
        difference = np.abs(pictures_of(comfy, entry, piece.id) - ours[start : start + 16]).max()
        print(f"largest difference of the piece from frame {start} on: {difference} of 255")
        assert difference <= 2  # Two conversions between RGB and what the codec holds.
    assert np.abs(pictures_of(comfy, entry, last.id) - ours[-1:]).max() <= 1


def test_the_file_of_the_film_is_what_the_video_output_holds(comfy: ComfyServer, files: Files):
    graph = Graph()
    node = decode(graph, stream(graph, our_loader(graph, files), **FAST), files)
    stacked = graph.add(
        "PackForcingStackVideos",
        video_1=node[0],
        video_2=node[0],
        captions="",
        filename_prefix="video/twice",
        codec="h264",
    )
    entry = comfy.client.run(graph.prompt)
    assert isinstance(film_of(comfy, entry, node.id), Path)
    assert probe(film_of(comfy, entry, stacked.id)).width == 2 * WIDTH
