"""PackForcing Demo Models: the miniature that comes with the pack, as native MODEL, CLIP and VAE."""

from __future__ import annotations

import asyncio
from functools import lru_cache

from aiohttp import web
from comfy_api.v0_0_2 import io

from ..packforcing_core.miniature import load as miniature
from . import host
from .loader import DTYPES, build_model
from .sockets import CATEGORY
from .tell import say
from .words_clip import words_clip

NAME = "PackForcing miniature"
PATH = "/packforcing/demo"


class DemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingDemoModels",
            display_name="PackForcing Demo Models",
            category=CATEGORY,
            description="A miniature Wan2.1 that comes with the pack, on ComfyUI's own sockets. It generates "
            "minutes of moving coloured shapes at 128x64 pixels on any CPU, so every node can be "
            "tried without model files.",
            search_aliases=["miniature", "tiny wan", "toy world", "example models", "no download"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[NAME],
                    default=NAME,
                    tooltip="The miniature of the toy world. It supports only 128x64 pixels, blocks of 4 latent "
                    "frames, and the words that the node lists.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=["default", "bf16", "fp32"],
                    default="default",
                    tooltip="Precision of the transformer's weights. default: ComfyUI's choice for your machine.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="An ordinary ComfyUI MODEL, with the trained compressor if the pack includes one."
                ),
                io.Clip.Output(
                    tooltip="For CLIP Text Encode and Timed Prompts. It knows only the words that the node lists."
                ),
                io.Vae.Output(tooltip="An ordinary ComfyUI VAE: the Wan2.1 VAE with narrower layers."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str) -> io.NodeOutput:
        read = miniature.read_model()
        model = build_model(read, DTYPES[weight_dtype])
        host.note_family(model, miniature.FAMILY)
        compressor = miniature.load_compressor(ops=host.HOST_OPS)
        if compressor is not None:
            host.attach_compressor(model, compressor)
        text = summary()
        say(cls.hidden.unique_id, text)
        return io.NodeOutput(
            model, words_clip(miniature.load_text()), host.native_vae(miniature.read_vae()), ui={"text": (text,)}
        )


def add_route(routes: web.RouteTableDef) -> None:
    @routes.get(PATH)
    async def demo(request: web.Request) -> web.Response:
        return web.Response(text=await asyncio.to_thread(summary))


@lru_cache(maxsize=1)
def summary() -> str:
    """What the miniature can do, and the words that its prompts may have."""
    width, height = miniature.SIZE
    remembers = "with its trained compressor" if miniature.COMPRESSOR.exists() else "without a trained compressor"
    return (
        f"{width}x{height} pixels, blocks of {miniature.FAMILY.frames_per_block} latent frames, {remembers}\n"
        f"words: {', '.join(miniature.load_text().vocabulary)}"
    )
