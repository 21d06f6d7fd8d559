"""PackForcing Stack Videos: renders side by side under their captions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import comfy.model_management
import comfy.utils
from comfy_api.v0_0_2 import InputImpl, io, ui

from ..packforcing_core.drawing.captions import caption_images, missing_letters
from ..packforcing_core.video import CODECS, probe
from ..packforcing_core.video.stack import stack_videos
from .growing import as_viewed, relative_to_output
from .output_paths import note_written, times_lost, video_file, video_path
from .sockets import CATEGORY
from .tell import Line

MOST = 6


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
    def fingerprint_inputs(cls, filename_prefix: str | None = None, **_) -> int:
        """A video that was deleted is written again."""
        return times_lost(cls.hidden.unique_id, filename_prefix)

    @classmethod
    def execute(cls, captions: str, filename_prefix: str, codec: str, **videos) -> io.NodeOutput:
        given = [videos[name] for name in sorted(videos) if videos[name] is not None]
        line = Line.of(cls.hidden.unique_id)
        missing = missing_letters(captions)
        warning = f"\nWarning: the font of the captions does not have these letters: {missing}" if missing else ""
        line.tell(state="running", text=f"Combining the videos.{warning}")
        try:
            path = _combined(given, captions, filename_prefix, codec, cls.hidden.unique_id)
        except comfy.model_management.InterruptProcessingException:
            line.tell(state="stopped", text="Stopped before the videos were combined. Press Run to combine them.")
            raise
        note_written(cls.hidden.unique_id, filename_prefix, path)
        made, file = probe(path), as_viewed(path)
        text = f"{made.duration:.1f} s | {relative_to_output(path)}{warning}"
        video = {"width": made.width, "height": made.height, "finished": True, "file": file, "segments": []}
        line.tell(state="done", text=text, video=video)
        saved = ui.PreviewVideo([ui.SavedResult(file["filename"], file["subfolder"], io.FolderType.output)])
        shown = {**saved.as_dict(), "text": (text,), "file": (relative_to_output(path),)}
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=shown)


def _combined(videos: Sequence, captions: str, filename_prefix: str, codec: str, node_id: str) -> Path:
    """The file with the `videos` side by side. Its progress is shown on the node."""
    with ExitStack() as stack:
        files = [video_file(video, stack) for video in videos]
        infos = [probe(file) for file in files]
        path, _ = video_path(filename_prefix, sum(info.width for info in infos), infos[0].height)
        bar = comfy.utils.ProgressBar(max(info.frames for info in infos), node_id=node_id)
        images = caption_images(captions, [info.width for info in infos])
        for written in stack.enter_context(closing(stack_videos(files, path, codec, images))):
            bar.update_absolute(written)
            comfy.model_management.throw_exception_if_processing_interrupted()
    return path
