"""Reads a video or an image: its properties and its frames. Also reads growing videos and those cut off by a crash."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, chain, islice, repeat
from pathlib import Path

import numpy as np

from .boxes import VideoError
from .images import is_image, read_image
from .packets import Packets, input_arguments, read_packets
from .process import LastWords, failure, start_ffmpeg, stderr_of, stdout_of
from .rgb import Plain, look

_FPS_OF_AN_IMAGE = Fraction(25)
# Decoded before the first frame that is wanted: deinterlacing looks back, and so do frames that are refreshed in parts.
_FRAMES_BEFORE = 2
_KEYFRAMES_BEFORE = 1


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


def read_frames(path: Path | str, since: int = 0) -> Iterator[np.ndarray]:
    """Decodes a video or an image frame by frame: uint8 [H, W, 3], RGB. Raises VideoError if it cannot be read.

    Frames have the constant rate that `probe` returns. Of a growing video, the closed segments are read. `since`: the
    number of the first frame; of an mp4, mov, mkv or webm, decoding begins shortly before it.
    """
    path = Path(path)
    if is_image(path):
        yield from [read_image(path).pixels][since:]
        return
    packets, plain = read_packets(path), look(path)
    stored, again = _stored(packets, since)
    begin = _beginning(packets, stored) if plain.indexed else _WHOLE
    frames = islice(_decoded(path, plain, begin), stored - begin.stored, None)
    yield from islice(_shown(frames, packets, stored), again, None)


def _stored(packets: Packets, since: int) -> tuple[int, int]:
    """The stored frame that is shown as frame number `since`, and how often it has been shown before."""
    if packets.repeats is None:
        return since, 0
    ends = list(accumulate(packets.repeats))
    stored = bisect_right(ends, since)
    return stored, since - (ends[stored - 1] if stored else 0)


@dataclass(frozen=True)
class _Beginning:
    """Where decoding begins: seeks to second `seek`, and drops what is shown before second `first`, so that the first
    frame is that with number `stored`.
    """

    stored: int
    seek: Fraction
    first: Fraction


_WHOLE = _Beginning(0, Fraction(0), Fraction(0))


def _beginning(packets: Packets, stored: int) -> _Beginning:
    """The latest beginning from which the frame with number `stored` is decoded as in the whole video."""
    begin = stored - _FRAMES_BEFORE
    before = packets.times[: max(0, begin)]
    keyframes = [second for second, key in before if key]
    if len(keyframes) <= _KEYFRAMES_BEFORE or begin >= len(packets.times):
        return _WHOLE
    between = (before[-1][0] + packets.times[begin][0]) / 2
    return _Beginning(begin, keyframes[-1 - _KEYFRAMES_BEFORE], between)


def _shown(frames: Iterator[np.ndarray], packets: Packets, stored: int) -> Iterator[np.ndarray]:
    """The frames from number `stored` on, each as often as it is shown."""
    repeats: Sequence[int] = packets.repeats or ()
    for frame, times in zip(frames, chain(repeats[stored:], repeat(1)), strict=False):
        yield from repeat(frame, times)


def _microseconds(seconds: Fraction) -> str:
    return f"{int(seconds * 10**6)}us"


def _decoded(path: Path, plain: Plain, begin: _Beginning) -> Iterator[np.ndarray]:
    """Each stored frame of the file from a beginning on, once."""
    size = plain.width * plain.height * 3
    seek, filters = [], plain.filters
    if begin != _WHOLE:
        seek = ["-ss", _microseconds(begin.seek)]
        filters = f"trim=start={_microseconds(begin.first - begin.seek)},{filters}"
    output = ("-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1")
    with start_ffmpeg([*seek, *input_arguments(path), "-fps_mode", "passthrough", *output]) as process:
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
