"""Registers the nodes with ComfyUI."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io
from server import PromptServer

from . import cache_panel, demo, tell
from .collect import CollectLatents
from .decode import StreamingVAEDecode
from .kv_cache import KVCacheConfig
from .loader import ModelLoader
from .prompts import PromptAt, TimedPrompts
from .sampler import Sampler
from .stack import StackVideos
from .start import StartFromNode


class PackForcingExtension(ComfyExtension):
    async def on_load(self) -> None:
        # Tools that only list nodes have no server.
        if hasattr(PromptServer, "instance"):
            tell.add_route(PromptServer.instance.routes)
            cache_panel.add_route(PromptServer.instance.routes)
            demo.add_route(PromptServer.instance.routes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ModelLoader,
            demo.DemoModels,
            KVCacheConfig,
            TimedPrompts,
            PromptAt,
            StartFromNode,
            Sampler,
            CollectLatents,
            StreamingVAEDecode,
            StackVideos,
        ]


async def comfy_entrypoint() -> PackForcingExtension:
    return PackForcingExtension()
