"""The video that a node shows while it is written: its file and the ends of its closed segments."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths

from ..packforcing_core.video.boxes import VideoError, scan_video
from ..packforcing_core.video.codec_name import codec_name


@dataclass
class GrowingVideo:
    """A video at `fps` that grows in the file `growing` and is renamed to `path` at the end; both are in the output
    folder.
    """

    growing: Path
    path: Path
    width: int
    height: int
    fps: float
    _size: int = field(default=-1, init=False)

    def has_grown(self) -> bool:
        """Whether more can be played than at the previous call."""
        try:
            size = self.growing.stat().st_size
        except OSError:
            return False
        grown, self._size = size != self._size, size
        return grown

    def seen(self, finished: bool) -> dict[str, Any]:
        """What the player in the browser needs: the file as /view names it. While the video is not `finished`, also its
        codec, the bytes of its header, and the last byte and second of each closed segment.
        """
        known = {"width": self.width, "height": self.height, "finished": finished}
        if finished:
            return {**known, "file": as_viewed(self.path), "segments": []}
        try:
            video = scan_video(self.growing)
        except VideoError:  # Nothing is written yet.
            return {**known, "file": as_viewed(self.growing), "segments": []}
        frames, segments = 0, []
        for segment in video.segments:
            frames += segment.frames
            segments.append([segment.end, round(frames / self.fps, 4)])
        codec = codec_name(video.init)
        begin = {"codec": codec and f'video/mp4; codecs="{codec}"', "init": len(video.init)}
        return {**known, **begin, "file": as_viewed(self.growing), "segments": segments}


def relative_to_output(path: Path) -> str:
    """A file's path relative to ComfyUI's output folder, for messages."""
    root = Path(folder_paths.get_output_directory()).resolve()
    return Path(os.path.relpath(path.resolve(), root.parent)).as_posix()


def as_viewed(path: Path) -> dict[str, str]:
    """A file of ComfyUI's output folder as query values for the /view route."""
    root = Path(folder_paths.get_output_directory()).resolve()
    inside = Path(os.path.relpath(path.resolve(), root))
    subfolder = "" if inside.parent == Path() else inside.parent.as_posix()
    return {"filename": inside.name, "subfolder": subfolder, "type": "output"}
