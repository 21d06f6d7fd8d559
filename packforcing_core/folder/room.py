"""Whether a render fits on its disk, before it is begun."""

from __future__ import annotations

import shutil

from ..geometry import size_text
from .files import FolderError
from .folder import RenderFolder


def room_notes(folder: RenderFolder, block_bytes: int) -> tuple[str, ...]:
    """A warning where the blocks that are missing, of at most `block_bytes` each, do not fit on the disk.

    FolderError where not even one does. Nothing where the system does not tell what is free.
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
        raise FolderError(f"{there}, and one block of this render takes {size_text(block_bytes)}. Free disk space.")
    return (
        f"Warning: {there}, and this render may take {size_text(missing * block_bytes)} more: it will stop when the "
        "disk is full. Free disk space; the same render then resumes.",
    )
