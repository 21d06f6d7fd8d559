"""Reads a video or an image: its properties and its frames. Also reads growing videos and those cut off by a crash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from .boxes import VideoError
from .images import is_image, read_image
from .packets import Packets, input_arguments, read_packets
from .process import LastWords, failure, start_ffmpeg, stderr_of, stdout_of
from .rgb import Plain, look

_FPS_OF_AN_IMAGE = Fraction(25)


@dataclass(frozen=True)
class VideoInfo:
    """The output of `read_frames` for a file: upright frames with square pixels at a constant rate.

    `fps` is exact. `codec` is ffmpeg's name (h264, hevc, av1), or Pillow's for an image (png, jpeg). `notes` are
    sentences for the user on what is changed while reading.
    """

    frames: int
    width: int
    height: int
    fps: Fraction
    codec: str
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


def probe(path: Path | str) -> VideoInfo:
    """Counts and measures a video: reads every packet, decodes one frame. Raises VideoError if it cannot be read."""
    path = Path(path)
    if is_image(path):
        image = read_image(path)
        height, width = image.pixels.shape[:2]
        return VideoInfo(1, width, height, _FPS_OF_AN_IMAGE, image.format.lower(), image.notes)
    packets, plain = read_packets(path), look(path)
    notes = (*packets.notes, *plain.notes)
    return VideoInfo(packets.frames, plain.width, plain.height, packets.rate, packets.codec, notes)


def read_frames(path: Path | str) -> Iterator[np.ndarray]:
    """Decodes a video or an image frame by frame: uint8 [H, W, 3], RGB. Raises VideoError if it cannot be read.

    Frames have the constant rate that `probe` returns. Of a growing video, the closed segments are read.
    """
    path = Path(path)
    if is_image(path):
        yield read_image(path).pixels
        return
    packets, plain = read_packets(path), look(path)
    yield from _shown(_decoded(path, plain), packets)


def _shown(frames: Iterator[np.ndarray], packets: Packets) -> Iterator[np.ndarray]:
    repeats: Sequence[int] = packets.repeats or ()
    for frame, times in zip(frames, chain(repeats, repeat(1)), strict=False):
        yield from repeat(frame, times)


def _decoded(path: Path, plain: Plain) -> Iterator[np.ndarray]:
    """Each stored frame of the file, once."""
    size = plain.width * plain.height * 3
    output = ("-vf", plain.filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1")
    with start_ffmpeg([*input_arguments(path), "-fps_mode", "passthrough", *output]) as process:
        stdout, words = stdout_of(process), LastWords(stderr_of(process))
        try:
            while len(data := stdout.read(size)) == size:
                yield np.frombuffer(data, np.uint8).reshape(plain.height, plain.width, 3)
        except BaseException:
            process.kill()
            raise
        lines = words.lines()
    if process.returncode != 0:
        raise VideoError(f"The video {path} cannot be decoded: {failure(process.returncode, lines)}")
