"""The mp4 boxes (ISO/IEC 14496-12) that are needed to append to a growing video and to cut it back.

A growing video is `ftyp moov` (its init), followed by one `moof mdat` pair per closed segment. A moof states the
segment's place in the video twice: as a sequence number (mfhd) and as the decode time of its first frame (tfdt).
Everything else in it is relative, so the output of a fresh encoder can be appended by setting these two.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import PackForcingError

_HEADER = 8
_LONG_HEADER = 16
# A moof takes 4 to 16 bytes per frame, and the moov of an empty video less than 2 kB; larger boxes are damage.
_LARGEST_INDEX = 64 * 2**20


class VideoError(PackForcingError):
    """A file is not a video that the writer started, or has fewer closed segments than expected."""


@dataclass(frozen=True)
class Segment:
    """One closed segment of a growing video: the end of its bytes in the file, and its number of frames."""

    end: int
    frames: int


@dataclass(frozen=True)
class ScannedVideo:
    """The contents of a growing video, up to the last complete segment."""

    init: bytes
    segments: tuple[Segment, ...]

    def end(self, segments: int) -> int:
        """The size in bytes of the video with its first `segments` segments."""
        return self.segments[segments - 1].end if segments else len(self.init)

    def frames(self, segments: int) -> int:
        return sum(segment.frames for segment in self.segments[:segments])


@dataclass(frozen=True)
class _Box:
    kind: bytes
    start: int
    body: int
    end: int


def scan_video(path: Path) -> ScannedVideo:
    """Finds the complete segments of a growing video; an incomplete end after a crash is ignored.

    Reads only the headers of the boxes. Raises VideoError if the file does not begin as a video.
    """
    try:
        with open(path, "rb") as file:
            return _scan(file)
    except OSError as error:
        raise VideoError(f"The video {path} cannot be read: {error}.") from error


def _scan(file: BinaryIO) -> ScannedVideo:
    boxes = _file_boxes(file, os.fstat(file.fileno()).st_size)
    init = b"".join(_read(file, box) for box in (next(boxes, None), next(boxes, None)) if box)
    if [box.kind for box in _boxes(init)] != [b"ftyp", b"moov"]:
        raise VideoError(f"{file.name} is not a growing video: it does not begin with the boxes ftyp and moov.")
    segments: list[Segment] = []
    for moof, mdat in zip(boxes, boxes, strict=False):
        if (moof.kind, mdat.kind) != (b"moof", b"mdat") or moof.end - moof.start > _LARGEST_INDEX:
            break
        frames = _frames_in(_read(file, moof))
        if not frames:
            break
        segments.append(Segment(end=mdat.end, frames=frames))
    return ScannedVideo(init, tuple(segments))


def _file_boxes(file: BinaryIO, size: int) -> Iterator[_Box]:
    """The complete boxes at the top level of the file, in order; stops at the first incomplete or invalid one."""
    position = 0
    while position < size:
        file.seek(position)
        box = _parse_header(file.read(_LONG_HEADER), position)
        if box is None or box.end > size:
            return
        yield box
        position = box.end


def _boxes(data: bytes | bytearray, start: int = 0, end: int | None = None) -> Iterator[_Box]:
    end = len(data) if end is None else end
    while start < end:
        box = _parse_header(data[start : start + _LONG_HEADER], start)
        if box is None or box.end > end:
            return
        yield box
        start = box.end


def _parse_header(header: bytes | bytearray, start: int) -> _Box | None:
    if len(header) < _HEADER:
        return None
    size, kind = struct.unpack_from(">I4s", header)
    body = _HEADER
    if size == 1 and len(header) >= _LONG_HEADER:  # The size did not fit in 32 bits.
        (size,) = struct.unpack_from(">Q", header, _HEADER)
        body = _LONG_HEADER
    return _Box(kind, start, start + body, start + size) if size >= body else None


def _read(file: BinaryIO, box: _Box) -> bytes:
    if box.end - box.start > _LARGEST_INDEX:
        return b""
    file.seek(box.start)
    return file.read(box.end - box.start)


def _inside(data: bytes | bytearray, *path: bytes) -> Iterator[_Box]:
    """The boxes at a path such as moof, traf, trun."""
    level = [box for box in _boxes(data) if box.kind == path[0]]
    for kind in path[1:]:
        level = [box for outer in level for box in _boxes(data, outer.body, outer.end) if box.kind == kind]
    yield from level


def _frames_in(moof: bytes) -> int:
    runs = [box for box in _inside(moof, b"moof", b"traf", b"trun") if box.end - box.body >= 8]
    return sum(struct.unpack_from(">I", moof, box.body + 4)[0] for box in runs)


def split_segment(encoded: bytes) -> tuple[bytes, bytearray, int]:
    """The whole output of an encoder as (init boxes, its moof mdat pair, its number of frames). Raises VideoError."""
    boxes = list(_boxes(encoded))
    kinds = [box.kind for box in boxes]
    if kinds != [b"ftyp", b"moov", b"moof", b"mdat"] or boxes[-1].end != len(encoded):
        raise VideoError(f"The encoder returned the boxes {kinds} but expected ftyp, moov, one moof and one mdat.")
    init = encoded[: boxes[1].end]
    media = bytearray(encoded[boxes[1].end :])
    return init, media, _frames_in(encoded[boxes[2].start : boxes[2].end])


def place_segment(media: bytearray, segment: int, first_tick: int) -> None:
    """Sets, in place, the number (from 0) of a moof mdat pair and the decode time of its first frame, in ticks."""
    for box in _inside(media, b"moof", b"mfhd"):
        struct.pack_into(">I", media, box.body + 4, (segment + 1) % 2**32)
    for box in _inside(media, b"moof", b"traf", b"tfdt"):
        if media[box.body] != 1:
            raise VideoError("The encoder wrote a 32-bit decode time; a long video needs a newer ffmpeg (5 or later).")
        (own,) = struct.unpack_from(">Q", media, box.body + 4)
        struct.pack_into(">Q", media, box.body + 4, own + first_tick)
