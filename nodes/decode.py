"""PackForcing Streaming VAE Decode: a stream of latent blocks -> a film on disk, decoded while it is sampled."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.v0_0_2 import InputImpl, io, ui

from ..packforcing_core.drawing.telemetry import as_image, telemetry_picture
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.render import FilmedBlock, film_events
from ..packforcing_core.sampler.rollout import Event
from ..packforcing_core.vae.streaming import StreamingDecoder
from ..packforcing_core.vae.wan_vae import WanVAE
from ..packforcing_core.video.format import CODECS, VideoFormat
from ..packforcing_core.video.writer import SegmentedWriter
from . import host
from .feedback import RenderFeedback, say
from .output import film_path
from .sockets import CATEGORY, StreamSocket
from .stream import LatentStream

DEFAULT_QUALITY = -1


class StreamingVAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingStreamingVAEDecode",
            display_name="PackForcing Streaming VAE Decode",
            category=CATEGORY,
            description="Decodes each block while the next one is sampled, into an mp4 that plays while it grows. "
            "Run again with another codec or quality: the latents are re-used, nothing is sampled twice.",
            search_aliases=["save long video", "stream decode", "video to disk"],
            inputs=[
                StreamSocket.Input("stream", tooltip="From the PackForcing Sampler. It is sampled by this node."),
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE, or a smaller one of its kind (LightVAE)."),
                io.String.Input(
                    "filename_prefix",
                    default="video/PackForcing",
                    tooltip="Below ComfyUI's output folder. %date:yyyy-MM-dd% and the like work.",
                ),
                *_encoder_inputs(),
            ],
            outputs=[
                io.Video.Output(tooltip="The film, read from its file when it is needed."),
                io.Image.Output(
                    display_name="last_frames",
                    tooltip="The end of the video, 1 frame unless last_frames says more.",
                ),
                io.Image.Output(
                    display_name="telemetry",
                    tooltip="The render as a picture: seconds and memory of each block, drift of colour and contrast, "
                    "and which past blocks were looked at when. For Preview Image or Save Image.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        stream: LatentStream,
        vae,
        filename_prefix: str,
        codec: str,
        quality: int,
        blocks_per_segment: int,
        last_frames: int,
    ) -> io.NodeOutput:
        node_id, geometry = cls.hidden.unique_id, stream.recipe.geometry
        network = host.vae_network(vae)
        video_format = VideoFormat(codec, None if quality == DEFAULT_QUALITY else quality, geometry.fps)
        path, subfolder = film_path(filename_prefix, geometry.width, geometry.height)
        with SegmentedWriter(path, geometry.width, geometry.height, video_format) as writer:
            say(node_id, f"the film grows in {writer.growing_path}")
            try:
                feedback = RenderFeedback(stream, node_id)
                tail = _film(stream.events(vae, network), network, writer, blocks_per_segment, last_frames, feedback)
                writer.finish(metadata=_workflow(cls.hidden))
            except PackForcingError as error:
                raise PackForcingError(f"{error} The film so far: {writer.growing_path}") from error
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        picture = torch.from_numpy(as_image(telemetry_picture(stream.telemetry, geometry.describe())))
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), tail, picture, ui=ui.PreviewVideo([saved]))


def _encoder_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "codec",
            options=list(CODECS),
            default="h264",
            tooltip="; ".join(f"{name}: {codec.about}" for name, codec in CODECS.items()),
        ),
        io.Int.Input(
            "quality",
            default=DEFAULT_QUALITY,
            min=DEFAULT_QUALITY,
            max=63,
            tooltip="Constant rate factor: lower is better and larger. -1: the codec's default (18 for h264).",
        ),
        io.Int.Input(
            "blocks_per_segment",
            default=4,
            min=1,
            max=1000,
            tooltip="Every so many blocks the film on disk is safe: a crash loses at most this much of it. "
            "Smaller segments make the file a little larger.",
            advanced=True,
        ),
        io.Int.Input(
            "last_frames",
            default=1,
            min=1,
            max=1024,
            tooltip="How many frames from the end of the video go to the IMAGE output.",
            advanced=True,
        ),
    ]


def _film(
    latents: Iterator[Event],
    network: WanVAE,
    writer: SegmentedWriter,
    blocks_per_segment: int,
    last_frames: int,
    feedback: RenderFeedback,
) -> torch.Tensor:
    """Runs the render into the writer; returns the last frames as IMAGE [N, H, W, 3] in 0..1."""
    tail: deque[np.ndarray] = deque(maxlen=last_frames)
    events = film_events(latents, StreamingDecoder(network), writer, blocks_per_segment)
    with closing(feedback), closing(latents), closing(events):
        for event in events:
            if isinstance(event, FilmedBlock):
                tail.extend(event.frames)
            feedback.show(event)
    return torch.from_numpy(np.stack(tail)).float() / 255


def _workflow(hidden) -> dict:
    """What ComfyUI reads back when the film is dropped on its canvas."""
    if args.disable_metadata:
        return {}
    return {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})} if hidden.prompt else {}
