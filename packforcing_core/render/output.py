"""The name of a finished video: checked before any work, taken at the end, and never another file's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import PackForcingError

LONGEST_NAME = 200
"""Bytes of a file name; systems take 255, and names of files on the way there are longer."""


def checked_output(path: Path) -> Path:
    """`path` if a file system takes it as the name of an mp4; PackForcingError otherwise."""
    name = path.name
    if path.suffix.lower() != ".mp4":
        raise PackForcingError(f"Got the output {str(path)[:200]!r}; expected a file name that ends in .mp4.")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeError as error:
        raise PackForcingError(f"Got the output {name[:60]!r}, which no file can be called: {error}.") from error
    if "\0" in str(path) or size > LONGEST_NAME:
        raise PackForcingError(
            f"Got the output {name[:60]!r}... of {size} bytes; expected a name of {LONGEST_NAME} at most, without NUL."
        )
    return path


def free_names(path: Path) -> Iterator[Path]:
    """`path`, then path-2, path-3, ..."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def publish(finished: Path, wanted: Path) -> Path:
    """Gives the file `finished` the name `wanted`, or the first free one behind it; returns the name.

    Two that want the same name at the same moment get two: the name is taken by making the file, which one can do.
    """
    for candidate in free_names(wanted):
        try:
            with open(candidate, "xb"):
                pass
        except FileExistsError:
            continue
        os.replace(finished, candidate)
        return candidate
    raise AssertionError("free names do not end")
