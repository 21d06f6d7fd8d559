"""PackForcing Streaming VAE Decode: a stream of latent blocks -> a video on disk, decoded while it is sampled."""

from __future__ import annotations

from collections import deque
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.v0_0_2 import InputImpl, io, ui
from PIL import Image

from ..packforcing_core.drawing.chart import as_image, telemetry_picture
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.render.writing import Finished, VideoJob, WrittenBlock, growing_video, written_render
from ..packforcing_core.video.format import CODECS, VideoFormat
from . import host
from .feedback import RenderFeedback
from .growing import GrowingVideo, relative_to_output
from .output_paths import fill_widgets, note_written, times_lost, video_path
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
            description="Decodes each block while the next one is sampled, and saves an mp4 that plays while it "
            "grows. With another codec or quality the latents are reused: nothing is sampled twice.",
            search_aliases=["save long video", "stream decode", "video to disk"],
            inputs=[
                StreamSocket.Input("stream", tooltip="From the PackForcing Sampler. It is sampled by this node."),
                io.Vae.Input(
                    "vae",
                    tooltip="The Wan2.1 VAE, a narrower one (LightVAE), or a tiny one (taew2_1, lighttaew2_1): "
                    "faster, with less detail.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/PackForcing",
                    tooltip="Below ComfyUI's output folder. %date:yyyy-MM-dd%, %Node.widget% and the like work.",
                ),
                *_encoder_inputs(),
            ],
            outputs=[
                io.Video.Output(tooltip="The video, read from its file when it is needed."),
                io.Image.Output(
                    display_name="last_frames",
                    tooltip="The last frames of the video; last_frames sets how many.",
                ),
                io.Image.Output(
                    display_name="telemetry",
                    tooltip="Charts of the render: seconds and memory per block, drift of colour and contrast, and "
                    "which past blocks each block attended to. For Preview Image or Save Image.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, filename_prefix: str | None = None, **_) -> int:
        """A video that was deleted is written again."""
        return times_lost(cls.hidden.unique_id, filename_prefix)

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
        decode_device: str = host.OWN_DEVICE,
    ) -> io.NodeOutput:
        geometry = stream.recipe.geometry
        path, subfolder = video_path(fill_widgets(filename_prefix, cls.hidden.prompt), geometry.width, geometry.height)
        job = VideoJob(
            path,
            VideoFormat(codec, None if quality == DEFAULT_QUALITY else quality, geometry.fps),
            blocks_per_segment,
            host.decoding_network(vae, host.chosen_device(decode_device)),
            host.vae_identity(vae),
            tail_frames=last_frames,
            keep_growing=stream.named,
            metadata=_workflow(cls.hidden),
        )
        tail, told, path = _write_video(stream, vae, job, cls.hidden.unique_id)
        note_written(cls.hidden.unique_id, filename_prefix, path)
        saved = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)]).as_dict()
        picture = torch.from_numpy(as_image(_telemetry(stream)))
        shown = {**saved, "text": (told,), "file": (relative_to_output(path),)}
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), tail, picture, ui=shown)


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
            default=2,
            min=1,
            max=1000,
            tooltip="After this many blocks the video on disk is safe: a crash loses at most this much of "
            "it. Smaller segments make the file a little larger.",
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
        io.Combo.Input(
            "decode_device",
            options=host.decode_devices(),
            default=host.OWN_DEVICE,
            tooltip="Where the VAE decodes. A second GPU decodes while the first one samples, and saves VRAM on it. "
            "default: where ComfyUI has the VAE.",
            optional=True,
            advanced=True,
        ),
    ]


def _write_video(stream: LatentStream, vae, job: VideoJob, node_id: str) -> tuple[torch.Tensor, str, Path]:
    """Runs the render. Returns the last frames as IMAGE [N, H, W, 3] in 0..1, the summary text, and the video file."""
    folder = stream.folder
    folder.ensure()
    growing = growing_video(folder, job)
    g = stream.recipe.geometry
    grows = GrowingVideo(growing, job.path, g.width, g.height, g.fps)
    feedback = RenderFeedback(stream, node_id, grows, host.vae_notes(vae))
    tail: deque[np.ndarray] = deque(maxlen=job.tail_frames)
    try:
        written = written_render(folder, stream.recipe, job, partial(stream.events, vae, job.vae))
        with feedback, closing(written) as events:
            for event in events:
                if isinstance(event, WrittenBlock):
                    tail.extend(event.frames)
                elif isinstance(event, Finished):
                    path = event.path
                feedback.show(event)
    except PackForcingError as error:
        raise PackForcingError(f"{error} The video so far: {growing}") from error
    return torch.from_numpy(np.stack(tail)).float() / 255, feedback.summary(), path


def _telemetry(stream: LatentStream) -> Image.Image:
    """The telemetry image, drawn from the log in the render's folder. A copy is saved in that folder."""
    picture = telemetry_picture(stream.folder.telemetry.lines(), stream.recipe.geometry.describe())
    with suppress(OSError):  # The video is finished; a full disk must not fail the node here.
        picture.save(stream.folder.path / "telemetry.png")
    return picture


def _workflow(hidden) -> dict:
    """The metadata that ComfyUI reads when the video is dropped on its canvas."""
    if args.disable_metadata:
        return {}
    return {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})} if hidden.prompt else {}
