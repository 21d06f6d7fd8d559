"""Decoded frames of any kind as plain RGB: square pixels, progressive, no alpha, standard dynamic range.

The needed filters are derived from the first decoded frame, after ffmpeg has rotated it, and never from a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, islice, takewhile
from pathlib import Path

from .boxes import VideoError
from .packets import input_arguments
from .process import FfmpegError, ffmpeg_says, has_filter

_FRAME = re.compile(r"\] n: *0 .*fmt:(\S+) .*sar:(\d+)/(\d+) s:(\d+)x(\d+) i:(\S)")
_STREAM = re.compile(r"  Stream #0:\d+\S*: (Video|Audio|Subtitle): ")
_TURN = re.compile(r" +display ?matrix: rotation of (-?\d+)(\.\d+)? degrees", re.IGNORECASE)
_INDEXED = ("Input #0, mov,", "Input #0, matroska,")
_COLOURS = re.compile(r"color_space:(\S+).*color_trc:(\S+)")
_WITH_ALPHA = re.compile(r"yuva|ya\d|gbrap|rgba|bgra|argb|abgr|rgb32|bgr32|pal8")
_YUV = re.compile(r"yuv|nv\d|p0\d\d|uyvy|yuyv")
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
# The widest and narrowest pixels in use are 2:1 and 8:9, but a file may state anything.
_NARROWEST, _WIDEST = 1 / 4, 4.0
# Players assume BT.709 for untagged colours of more than 576 rows, the limit of standard definition.
_ROWS_OF_SD = 576


@dataclass(frozen=True)
class Plain:
    """The display size of a video's frames, the `filters` that produce it, and notes for the user. `indexed`: whether
    the file has a list of its frames, so that decoding can begin anywhere.
    """

    width: int
    height: int
    filters: str
    notes: tuple[str, ...]
    indexed: bool = False


def look(path: Path) -> Plain:
    """Decodes the first frame of a video. Raises VideoError if there is none."""
    arguments = [*input_arguments(path, "info"), "-frames:v", "1", "-vf", "showinfo", "-f", "null", "-"]
    try:
        said = ffmpeg_says(arguments)
    except FfmpegError as error:
        raise VideoError(f"The video {path} cannot be decoded: {error}") from error
    holds = list(takewhile(lambda line: not line.startswith("Output #"), said))
    frame = next((found for line in said if (found := _FRAME.search(line))), None)
    if frame is None:
        raise VideoError(f"The video {path} cannot be decoded: ffmpeg finds no frame in it.")
    colours = next((found for line in said if (found := _COLOURS.search(line))), None)
    space, curve = colours.groups() if colours else ("unknown", "unknown")
    plain = _plain(frame.groups(), space, curve)
    indexed = any(line.startswith(_INDEXED) for line in holds)
    return replace(plain, notes=(*_turned(holds), *plain.notes, *_left_out(holds)), indexed=indexed)


def _turned(holds: Sequence[str]) -> Iterator[str]:
    """A note if the first video is stored turned, from ffmpeg's list of the streams."""
    first = dropwhile(lambda line: not _is_video(line), holds)
    own = takewhile(lambda line: not _STREAM.match(line), islice(first, 1, None))
    angle = next((abs(int(found[1])) for line in own if (found := _TURN.match(line))), 0)
    if angle == 180:  # ffmpeg lists a mirror image in the same way.
        yield "It is turned by 180 degrees or mirrored, as its rotation flag says."
    elif angle:
        yield f"It is turned by {angle} degrees, as its rotation flag says."


def _is_video(line: str) -> bool:
    """Whether a line of ffmpeg's list is that of a video and not of a cover image."""
    found = _STREAM.match(line)
    return found is not None and found[1] == "Video" and "(attached pic)" not in line


def _left_out(holds: Sequence[str]) -> Iterator[str]:
    """Notes on what else is in the file, from ffmpeg's list of its streams."""
    kinds = [found[1] for line in holds if (found := _STREAM.match(line)) and "(attached pic)" not in line]
    if "Audio" in kinds:
        yield "The video's sound is ignored."
    if kinds.count("Video") > 1:
        yield f"It holds {kinds.count('Video')} videos: only the first is used."


def _plain(frame: Sequence[str], space: str, curve: str) -> Plain:
    pixels, (across, down, width, height), field = frame[0], map(int, frame[1:5]), frame[5]
    filters, notes = [], []
    if field in "TB":
        filters.append("yadif=deint=interlaced")
        notes.append("It is interlaced: it is deinterlaced.")
    if _WITH_ALPHA.match(pixels):
        filters.append("format=gbrap,premultiply=inplace=1")
        notes.append("It has transparency: transparent parts become black.")
    if curve in _HDR and has_filter("zscale"):
        filters.append(_TONE_MAP)
        notes.append(f"It is HDR ({_HDR[curve]}): it is tone-mapped to standard range.")
    elif curve in _HDR:
        notes.append(f"It is HDR ({_HDR[curve]}), which this ffmpeg cannot tone-map: it will look pale.")
    if across != down and across and down:
        width, height, said = _square(width, height, across, down)
        notes.append(said)
    untagged = space == "unknown" and _YUV.match(pixels) and min(width, height) > _ROWS_OF_SD
    matrix = ":in_color_matrix=bt709" if untagged else ""
    exact = f"flags=bicubic+accurate_rnd+full_chroma_int+bitexact{matrix}"
    # A fixed size, so that a video that changes its size keeps that of its first frame.
    return Plain(width, height, ",".join([*filters, f"scale={width}:{height}:{exact}", "format=rgb24"]), tuple(notes))


_TONE_MAP = (
    "zscale=transfer=linear:npl=100,format=gbrpf32le,zscale=primaries=bt709,tonemap=hable:desat=0,"
    "zscale=transfer=bt709:matrix=bt709:range=tv,format=yuv444p"
)


def _square(width: int, height: int, across: int, down: int) -> tuple[int, int, str]:
    """The size with square pixels: one side grows, so that nothing is lost."""
    shape = f"Its pixels are {across}:{down}, not square"
    if not _NARROWEST <= across / down <= _WIDEST:
        return width, height, f"{shape}: this is taken for an error and ignored."
    if across > down:
        width = round(width * across / down)
    else:
        height = round(height * down / across)
    return width, height, f"{shape}: it is stretched to {width} x {height}."
