"""Videos side by side, to compare renders."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ..errors import PackForcingError
from .format import VideoFormat
from .reader import VideoInfo, probe, read_frames
from .writer import SegmentedWriter

FRAMES_PER_SEGMENT = 64


def stack_videos(
    videos: Sequence[Path], target: Path, codec: str = "h264", captions: Sequence[np.ndarray] | None = None
) -> Generator[int, None, None]:
    """Writes the `videos`, left to right, as one video `target`, which exists when the iterator ends.

    Yields the number of written frames after each frame. `captions` are images uint8 [h, W, 3] above the videos, each
    as wide as its video. A video that ends early shows its last frame until the longest one ends. Raises
    PackForcingError for videos of different height or frame rate.
    """
    infos = [probe(video) for video in videos]
    _require_alike(videos, infos)
    width, height = sum(info.width for info in infos), infos[0].height + (captions[0].shape[0] if captions else 0)
    with SegmentedWriter(target, width, height, VideoFormat(codec, fps=float(infos[0].fps))) as writer:
        for number, row in enumerate(_rows(videos, captions), start=1):
            writer.write(row[None])
            if number % FRAMES_PER_SEGMENT == 0:
                writer.end_segment()
            yield number
        writer.finish()


def _rows(videos: Sequence[Path], captions: Sequence[np.ndarray] | None) -> Iterator[np.ndarray]:
    """One image per time step with all videos side by side."""
    shown: list[np.ndarray] = []
    for frames in zip_longest(*map(read_frames, videos)):
        shown = [old if new is None else new for old, new in zip(shown or frames, frames, strict=True)]
        if captions is None:
            yield np.concatenate(shown, axis=1)
        else:
            yield np.concatenate([np.concatenate(pair, axis=0) for pair in zip(captions, shown, strict=True)], axis=1)


def _require_alike(videos: Sequence[Path], infos: Sequence[VideoInfo]) -> None:
    if len(videos) < 2:
        raise PackForcingError(f"Got {len(videos)} video(s) to stack; expected two or more.")
    for video, info in zip(videos, infos, strict=True):
        if (info.height, info.fps) != (infos[0].height, infos[0].fps):
            raise PackForcingError(
                f"{Path(video).name} is {info.height} pixels high at {float(info.fps):g} FPS and "
                f"{Path(videos[0]).name} {infos[0].height} at "
                f"{float(infos[0].fps):g}; they must be the same. Render them with the same height and fps."
            )
