"""Checks whether a render fits on its disk, before it starts."""

from __future__ import annotations

import shutil

from ..geometry import size_text
from .files import FolderError
from .folder import RenderFolder


def room_notes(folder: RenderFolder, block_bytes: int) -> tuple[str, ...]:
    """A warning if the missing blocks, of at most `block_bytes` each, do not fit on the disk.

    Raises FolderError if not even one fits. Empty if the system does not report free space.
    """
    missing = len(folder.missing_blocks())
    try:
        free = shutil.disk_usage(folder.path).free
    except OSError:
        return ()
    if not missing or free >= missing * block_bytes:
        return ()
    there = f"The disk of {folder.path} has {size_text(free)} free"
    if free < block_bytes:
        raise FolderError(f"{there}, but one block of this render takes {size_text(block_bytes)}. Free disk space.")
    return (
        f"Warning: {there}, but this render may need {size_text(missing * block_bytes)} more. It stops when the "
        "disk is full. Free disk space; the same render then resumes.",
    )
