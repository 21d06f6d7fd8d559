"""The few boxes of an mp4 (ISO/IEC 14496-12) that joining and cutting back a growing video needs.

A growing video is `ftyp moov` (its init) followed by one `moof mdat` pair per closed segment. A moof carries the
segment's place in the video twice: a sequence number (mfhd) and the decode time of its first frame (tfdt).
Everything else in it is relative, so an encoder that knows nothing of the video can be appended by setting those.
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
# A moof holds 4-16 bytes a frame and a moov of an empty video under 2 kB: more is damage, not worth reading.
_LARGEST_INDEX = 64 * 2**20


class VideoError(PackForcingError):
    """A file is not a video that the writer began, or holds fewer closed segments than asked for."""


@dataclass(frozen=True)
class Segment:
    """One closed segment of a growing video: where its bytes end in the file, and how many frames it holds."""

    end: int
    frames: int


@dataclass(frozen=True)
class ScannedVideo:
    """What a growing video consists of, up to the last segment that is complete."""

    init: bytes
    segments: tuple[Segment, ...]

    def end(self, segments: int) -> int:
        """Bytes of the video that its first `segments` segments take."""
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
    """Read which segments of a growing video are complete; a tail cut off by a crash is left out.

    Reads the boxes' headers and skips the images. Raises VideoError if the file does not begin as a video.
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
    """The complete boxes at the top of the file, in order; ends at the first that is cut off or no box."""
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
    if size == 1 and len(header) >= _LONG_HEADER:  # the size did not fit 32 bits
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
    """An encoder's whole output as (init boxes, the moof mdat pair, frames in it). Raises VideoError."""
    boxes = list(_boxes(encoded))
    kinds = [box.kind for box in boxes]
    if kinds != [b"ftyp", b"moov", b"moof", b"mdat"] or boxes[-1].end != len(encoded):
        raise VideoError(f"The encoder returned the boxes {kinds} but expected ftyp, moov, one moof and one mdat.")
    init = encoded[: boxes[1].end]
    media = bytearray(encoded[boxes[1].end :])
    return init, media, _frames_in(encoded[boxes[2].start : boxes[2].end])


def place_segment(media: bytearray, segment: int, first_tick: int) -> None:
    """Give a moof mdat pair, in place, its number (from 0) and the decode time of its first frame in ticks."""
    for box in _inside(media, b"moof", b"mfhd"):
        struct.pack_into(">I", media, box.body + 4, (segment + 1) % 2**32)
    for box in _inside(media, b"moof", b"traf", b"tfdt"):
        if media[box.body] != 1:
            raise VideoError("The encoder wrote a 32-bit decode time; a long video needs a newer ffmpeg (5 or later).")
        (own,) = struct.unpack_from(">Q", media, box.body + 4)
        struct.pack_into(">Q", media, box.body + 4, own + first_tick)
