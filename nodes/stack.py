"""PackForcing Stack Videos: renders side by side under their captions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing

import comfy.model_management
import comfy.utils
import numpy as np
from comfy_api.v0_0_2 import InputImpl, io, ui
from PIL import Image, ImageDraw, ImageFont

from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.video import CODECS, probe
from ..packforcing_core.video.stack import stack_videos
from .output_paths import video_file, video_path
from .sockets import CATEGORY

MOST = 6
CAPTION_HEIGHT = 32


class StackVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingStackVideos",
            display_name="PackForcing Stack Videos",
            category=CATEGORY,
            description="Combines videos side by side into one, each under its caption. Reads them frame by frame from "
            "disk. For comparing KV cache policies, seeds or LoRAs on the same prompt.",
            search_aliases=["compare videos", "side by side", "hstack"],
            inputs=[
                io.Video.Input("video_1", tooltip="The leftmost video. All must have the same height and frame rate."),
                io.Video.Input("video_2", tooltip="The next video to the right."),
                *(
                    io.Video.Input(f"video_{number}", optional=True, tooltip="The next video to the right.")
                    for number in range(3, MOST + 1)
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="One line per video, left to right. Empty: no captions.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/PackForcing_compare",
                    tooltip="Below ComfyUI's output folder. %date:yyyy-MM-dd% and the like work.",
                ),
                io.Combo.Input(
                    "codec",
                    options=list(CODECS),
                    default="h264",
                    tooltip="; ".join(f"{name}: {codec.about}" for name, codec in CODECS.items()),
                ),
            ],
            outputs=[io.Video.Output(tooltip="The video, read from its file when it is needed.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, captions: str, filename_prefix: str, codec: str, **videos) -> io.NodeOutput:
        given = [videos[name] for name in sorted(videos) if videos[name] is not None]
        with ExitStack() as stack:
            files = [video_file(video, stack) for video in given]
            infos = [probe(file) for file in files]
            path, subfolder = video_path(filename_prefix, sum(info.width for info in infos), infos[0].height)
            bar = comfy.utils.ProgressBar(max(info.frames for info in infos), node_id=cls.hidden.unique_id)
            pictures = caption_pictures(captions, [info.width for info in infos])
            for written in stack.enter_context(closing(stack_videos(files, path, codec, pictures))):
                bar.update_absolute(written)
                comfy.model_management.throw_exception_if_processing_interrupted()
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([saved]))


def caption_pictures(captions: str, widths: Sequence[int]) -> list[np.ndarray] | None:
    """White lines on black, uint8 [32, W, 3] for each width; None for an empty text."""
    lines = captions.rstrip().splitlines()
    if not lines:
        return None
    if len(lines) != len(widths):
        raise PackForcingError(
            f"Got {len(lines)} lines of captions for {len(widths)} videos; expected one line per video."
        )
    pictures = []
    for line, width in zip(lines, widths, strict=True):
        picture = Image.new("RGB", (width, CAPTION_HEIGHT))
        font = ImageFont.load_default(size=CAPTION_HEIGHT * 0.6)
        ImageDraw.Draw(picture).text((6, CAPTION_HEIGHT / 2), line, anchor="lm", font=font)
        pictures.append(np.asarray(picture))
    return pictures
