"""Reading a film back: what is in it, and its frames. Works on a growing film and on one cut off by a crash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .boxes import FilmError
from .process import FfmpegError, LastWords, failure, film_url, run_ffmpeg, start_ffmpeg


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. `fps` is exact; `codec` is ffmpeg's name (h264, hevc, av1)."""

    frames: int
    width: int
    height: int
    fps: Fraction
    codec: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


def probe(path: Path | str) -> VideoInfo:
    """Count and measure a video by reading every packet (no decoding). Raises FilmError if it cannot be read."""
    path = Path(path)
    try:
        listing = run_ffmpeg([*_input(path), "-c", "copy", "-f", "framecrc", "pipe:1"]).decode("utf-8")
    except FfmpegError as error:
        raise FilmError(f"The video {path} cannot be read: {error}") from error
    header, packets = _parse(listing)
    if not packets:
        raise FilmError(f"The video {path} holds no frames.")
    width, height = header["dimensions 0"].split("x")
    rate = _rate(packets, Fraction(header["tb 0"]))
    return VideoInfo(len(packets), int(width), int(height), rate, header["codec_id 0"])


def read_frames(path: Path | str) -> Iterator[np.ndarray]:
    """Decode a video frame by frame: uint8 [H, W, 3], RGB. Raises FilmError if it cannot be read.

    Of a growing film it reads the closed segments.
    """
    info = probe(path)
    size = info.width * info.height * 3
    arguments = [*_input(Path(path)), "-fps_mode", "passthrough", *_TO_RGB, "-f", "rawvideo", "pipe:1"]
    with start_ffmpeg(arguments) as process:
        words = LastWords(process.stderr)
        try:
            while len(data := process.stdout.read(size)) == size:
                yield np.frombuffer(data, np.uint8).reshape(info.height, info.width, 3)
        except BaseException:
            process.kill()
            raise
        lines = words.lines()
    if process.returncode != 0:
        raise FilmError(f"The video {path} cannot be decoded: {failure(process.returncode, lines)}")


_TO_RGB = ("-vf", "scale=flags=bicubic+accurate_rnd+full_chroma_int+bitexact,format=rgb24", "-pix_fmt", "rgb24")


def _input(path: Path) -> list[str]:
    return ["-v", "error", "-i", film_url(path), "-map", "0:v:0"]


def _parse(listing: str) -> tuple[dict[str, str], list[tuple[int, int]]]:
    """A framecrc listing as its header ("tb 0": "1/16384") and each packet's (pts, duration) in ticks."""
    header: dict[str, str] = {}
    packets: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            header[key.strip()] = value.strip()
        else:
            _, _, pts, duration, *_ = line.split(",")
            packets.append((int(pts), int(duration)))
    return header, packets


def _rate(packets: list[tuple[int, int]], tick: Fraction) -> Fraction:
    times = [pts for pts, _ in packets]
    span = max(times) - min(times)
    return (len(packets) - 1) / (span * tick) if span else 1 / (max(packets[0][1], 1) * tick)
