"""Names of files below ComfyUI's output folder."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..packforcing_core.errors import PackForcingError


def film_path(filename_prefix: str, width: int, height: int) -> tuple[Path, str]:
    """A free mp4 name below ComfyUI's output folder, and its subfolder. PackForcingError where it cannot be written."""
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
    except Exception as error:  # ComfyUI raises a bare Exception for a prefix that leaves the output folder.
        raise PackForcingError(f"Cannot write {filename_prefix!r}: {error}") from error
    return Path(os.path.join(folder, f"{name}_{counter:05}_.mp4")), subfolder
