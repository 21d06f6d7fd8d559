"""The name of a finished video: checked before any work, taken at the end, never that of an existing file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from ..errors import PackForcingError

LONGEST_NAME = 200
"""Longest file name in bytes. File systems allow 255, but names of temporary files are longer."""

WINDOWS = os.name == "nt"
# On Windows a colon in a name writes to another file's hidden stream, and devices have reserved names.
_NOT_ON_WINDOWS = re.compile(r'.*[<>:"|?*\x00-\x1f].*|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?', re.IGNORECASE)


def checked_output(path: Path) -> Path:
    """Returns `path` if it is a valid file name for an mp4. Raises PackForcingError otherwise."""
    name = path.name
    if path.suffix.lower() != ".mp4":
        raise PackForcingError(f"Got the output {str(path)[:200]!r}; expected a file name that ends in .mp4.")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeError as error:
        raise PackForcingError(f"Got the output {name[:60]!r}, which is not a valid path: {error}.") from error
    if "\0" in str(path) or size > LONGEST_NAME:
        raise PackForcingError(
            f"Got the output {name[:60]!r}... of {size} bytes; expected at most {LONGEST_NAME} bytes, without NUL."
        )
    if WINDOWS and _NOT_ON_WINDOWS.fullmatch(name):
        raise PackForcingError(
            f"Got the output {name[:60]!r}, which is not a valid file name on Windows. Use another name."
        )
    return path


def require_writable(path: Path) -> None:
    """Creates the folder of the output `path`; creates and removes a test file there, with the longest name used.

    Raises PackForcingError if that fails (read-only, disk full, no permission, path too long), before any work.
    """
    names = (f"{path.stem[:60]}.{uuid4().hex[:8]}.unfinished.mp4", f"{path.stem}-{uuid4().hex[:8]}.mp4")
    probe = path.with_name(max(names, key=len))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(probe, "xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise PackForcingError(
            f"No video can be written to {path.parent}: {error.strerror or error}. Choose another folder, or fix the "
            "cause."
        ) from error


def free_names(path: Path) -> Iterator[Path]:
    """`path`, then path-2, path-3, ..."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def publish(finished: Path, wanted: Path) -> Path:
    """Renames the file `finished` to `wanted`, or to the first free name after it; returns the name.

    The name is taken in one atomic step, so two renders that want the same name get two names.
    """
    for candidate in free_names(wanted):
        try:
            _take(finished, candidate)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("free names do not end")


def _take(finished: Path, candidate: Path) -> None:
    try:
        os.link(finished, candidate)
    except FileExistsError:
        raise
    except OSError:  # No hard links here, as on exFAT: an empty file reserves the name first.
        with open(candidate, "xb"):
            pass
        os.replace(finished, candidate)
    else:
        finished.unlink()
