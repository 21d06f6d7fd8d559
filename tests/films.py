"""Small moving pictures for tests that write and read films."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import psutil

from packforcing_core.video import SegmentedWriter, VideoError, VideoFormat, scan_video


def picture(start: int, frames: int = 4, width: int = 64, height: int = 48) -> np.ndarray:
    """Frames start .. start + frames of an endless film, uint8 [T, H, W, 3]: no two of them look alike."""
    y, x = np.mgrid[:height, :width]
    shots = []
    for t in range(start, start + frames):
        red = 128 + 100 * np.sin((x + 3 * t) / 9)
        green = 128 + 100 * np.cos((2 * y + t) / 11)
        blue = 128 + 60 * np.sin((x + y + 5 * t) / 17)
        shots.append(np.stack([red, green, blue], axis=-1))
    return np.stack(shots).astype(np.uint8)


def write_segments(writer: SegmentedWriter, segments: range, frames: int = 4) -> None:
    for segment in segments:
        writer.write(picture(segment * frames, frames, writer.width, writer.height))
        writer.end_segment()


def grown_film(path: Path, video_format: VideoFormat, segments: int, width: int = 64, height: int = 48) -> Path:
    """A growing film of so many closed segments of 4 frames that was left unfinished."""
    with SegmentedWriter(path, width, height, video_format) as writer:
        write_segments(writer, range(segments))
    return writer.growing_path


def encoders() -> list[psutil.Process]:
    """This process's running ffmpeg, and nothing else that its tests have started."""
    return [child for child in psutil.Process().children() if child.name().startswith("ffmpeg")]


def kill_encoders() -> bool:
    """Kills all running encoders; returns whether there was one.

    Does not wait for them, which would take their exit status from the writer. Until it does, they are zombies.
    """
    found = [encoder for encoder in encoders() if encoder.status() != psutil.STATUS_ZOMBIE]
    for encoder in found:
        encoder.kill()
    return bool(found)


def closed_segments(path: Path) -> int:
    """How many segments of a growing film are complete; none before its first bytes are there."""
    try:
        return len(scan_video(path).segments)
    except VideoError:
        return 0


def timestamps(path: Path) -> tuple[list[int], float]:
    """Presentation times of all decoded frames in ticks, and the seconds of a tick; read by PyAV's own libraries."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts for frame in container.decode(stream)], float(stream.time_base)
