"""The finished file: the growing video's packets copied into an mp4 with its index at the front."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .boxes import VideoError
from .format import VideoFormat
from .packets import read_packets
from .process import run_ffmpeg, video_url

# use_metadata_tags: ComfyUI's front end finds the keys prompt and workflow only in this form.
_FINAL = ("-movflags", "+faststart+use_metadata_tags")


def write_final(
    growing: Path, path: Path, frames: int, video_format: VideoFormat, metadata: Mapping[str, object]
) -> None:
    """Writes `path` from the growing video in one step; the growing video is only read.

    Raises VideoError if the result does not have `frames` frames at the format's rate, FfmpegError, OSError.
    """
    unfinished = path.with_name(f"{path.stem}.unfinished.mp4")
    try:
        run_ffmpeg(_arguments(growing, unfinished, video_format), stdin=_ffmetadata(metadata).encode("utf-8"))
        _check(unfinished, frames, video_format)
        with open(unfinished, "r+b") as file:
            os.fsync(file.fileno())  # On disk before the growing video is removed.
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _arguments(growing: Path, target: Path, video_format: VideoFormat) -> list[str]:
    return [
        *("-v", "error", "-y", "-f", "mov", "-i", video_url(growing), "-f", "ffmetadata", "-i", "pipe:0"),
        *("-map", "0:v:0", "-map_metadata", "1", "-c", "copy", "-bitexact", *_FINAL),
        *("-video_track_timescale", str(video_format.timescale), "-f", "mp4", video_url(target)),
    ]


def _check(path: Path, frames: int, video_format: VideoFormat) -> None:
    packets = read_packets(path)
    if (packets.frames, packets.rate) != (frames, video_format.rate):
        raise VideoError(
            f"The final file has {packets.frames} frames at {packets.rate} frames per second "
            f"but expected {frames} at {video_format.rate}"
        )


def _ffmetadata(metadata: Mapping[str, object]) -> str:
    """ffmpeg's metadata file, passed through a pipe because a workflow is too long for a command line."""
    lines = [";FFMETADATA1"]
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"{_escape(key)}={_escape(text)}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return "".join("\\" + letter if letter in "=;#\\\n" else letter for letter in text)
