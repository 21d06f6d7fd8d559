"""Checksums of a growing video's segments, in a file beside it, so that damage is noticed before more is appended."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from ..folder.files import FolderError, read_json, write_json

LARGEST_BYTES = 50_000_000


class SegmentSums:
    """One [end, checksum] per segment, over the bytes since the previous end; the first includes the file's header."""

    def __init__(self, video: Path):
        self._video, self._path = video, video.with_suffix(".sums.json")
        self._sums: list[list] = []
        with suppress(FolderError):
            content = read_json(self._path, LARGEST_BYTES)
            if isinstance(content, list) and all(_is_sum(entry) for entry in content):
                self._sums = content

    @property
    def segments(self) -> int:
        return len(self._sums)

    def sound(self) -> int:
        """How many segments, counted from the first, are unchanged since they were written."""
        good, start = 0, 0
        for end, expected in self._sums:
            if self._sum(start, end) != expected:
                break
            good, start = good + 1, end
        return good

    def append(self) -> None:
        """Adds the segment that ends at the file's present end."""
        start = self._sums[-1][0] if self._sums else 0
        end = self._video.stat().st_size
        self._sums.append([end, self._sum(start, end)])
        write_json(self._path, self._sums)

    def cut(self, segments: int) -> None:
        """Keeps only the first `segments`."""
        del self._sums[segments:]

    def remove(self) -> None:
        """Removes the checksums of a video that was removed."""
        self._path.unlink(missing_ok=True)

    def copy_to(self, video: Path, segments: int) -> None:
        """Writes the checksums of another video that begins with the first `segments` of this one."""
        other = SegmentSums(video)
        other._sums = self._sums[:segments]
        write_json(other._path, other._sums)

    def _sum(self, start: int, end: int) -> str:
        digest = hashlib.blake2b(digest_size=16)
        with open(self._video, "rb") as file:
            file.seek(start)
            while (left := end - file.tell()) > 0 and (data := file.read(min(left, 1 << 20))):
                digest.update(data)
        return digest.hexdigest()


def _is_sum(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and type(entry[0]) is int
        and entry[0] >= 0
        and isinstance(entry[1], str)
    )
