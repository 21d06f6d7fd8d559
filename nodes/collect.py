"""PackForcing Stream to Latent: a stream as one LATENT, for short clips and native nodes."""

from __future__ import annotations

from contextlib import closing

import comfy.model_management
import torch
from comfy_api.v0_0_2 import io

from ..packforcing_core.folder.files import locked
from ..packforcing_core.sampler.denoising import BlockDone
from ..packforcing_core.vae.config import unnormalise
from .feedback import RenderFeedback
from .sockets import CATEGORY, StreamSocket
from .stream import LatentStream


class CollectLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingCollectLatents",
            display_name="PackForcing Stream to Latent",
            category=CATEGORY,
            description="Samples the whole stream into one LATENT, for ComfyUI's own nodes (VAE Decode, Save "
            "Latent). For long videos use Streaming VAE Decode: two minutes at 832x480, decoded to "
            "an IMAGE, take 9.2 GB.",
            search_aliases=["collect latents"],
            inputs=[StreamSocket.Input("stream", tooltip="From the PackForcing Sampler.")],
            outputs=[io.Latent.Output(tooltip="All latent frames of the video, in ComfyUI's latent scale.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, stream: LatentStream) -> io.NodeOutput:
        blocks = []
        stream.folder.ensure()
        feedback = RenderFeedback(stream, cls.hidden.unique_id)
        with feedback, locked(stream.folder.path), closing(stream.events()) as events:
            for event in events:
                if isinstance(event, BlockDone):
                    blocks.append(event.latents)
                feedback.show(event)
            stream.folder.finish(None)
        samples = unnormalise(torch.cat(blocks, dim=2)).to(comfy.model_management.intermediate_device())
        return io.NodeOutput({"samples": samples})
