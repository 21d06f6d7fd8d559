"""Graphs of our nodes on small random checkpoints, as the tests of this folder queue them."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import save_file

from tests.checkpoints import SMALL_STOCK, wan_state_dict, write_comfyui_lora, write_family, write_stock_wan
from tests.comfyui.graphs import Graph, Link, Node
from tests.comfyui.server import ComfyServer
from tests.vaes import stock_vae

WIDTH, HEIGHT = 64, 32


@dataclass(frozen=True)
class Files:
    """Names of the small checkpoints as ComfyUI lists them."""

    self_forcing: str
    stock: str
    lora: str
    vae: str


def write_files(comfy: ComfyServer) -> Files:
    """Writes them into a server's model folders."""
    models = comfy.models("diffusion_models")
    self_forcing = write_family(models, "self-forcing", wan_state_dict(SMALL_STOCK))[0]
    write_stock_wan(models / "causal_forcing-framewise.safetensors")
    write_comfyui_lora(comfy.models("loras") / "small-lora.safetensors")
    save_file(stock_vae().state_dict(), comfy.models("vae") / "small-vae.safetensors")
    return Files(
        self_forcing.relative_to(models).as_posix(),
        "causal_forcing-framewise.safetensors",
        "small-lora.safetensors",
        "small-vae.safetensors",
    )


def stream(graph: Graph, model: Link, **settings) -> Link:
    """Our sampler behind `model`, small and short unless told otherwise."""
    inputs = {
        "seconds": 2.0,
        "width": WIDTH,
        "height": HEIGHT,
        "fps": 16.0,
        "seed": 3,
        "preset": "auto",
        "frames_per_block": 0,
        "timesteps": "",
        "shift": 0.0,
        **settings,
    }
    return graph.add("PackForcingSampler", model=model, positive=graph.conditioning(), **inputs)[0]


def decode(graph: Graph, latents: Link, files: Files, **settings) -> Node:
    inputs = {
        "filename_prefix": "video/test",
        "codec": "h264",
        "quality": -1,
        "blocks_per_segment": 4,
        "last_frames": 1,
        **settings,
    }
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    return graph.add("PackForcingStreamingVAEDecode", stream=latents, vae=vae, **inputs)


def with_lora(graph: Graph, model: Link, files: Files) -> Link:
    return graph.add("LoraLoaderModelOnly", model=model, lora_name=files.lora, strength_model=1.0)[0]


def our_loader(graph: Graph, files: Files) -> Link:
    return graph.add("PackForcingModelLoader", checkpoint=files.self_forcing, weight_dtype="default", preset="auto")[0]


def stock_loader(graph: Graph, files: Files) -> Link:
    return graph.add("UNETLoader", unet_name=files.stock, weight_dtype="default")[0]
