"""File names in ComfyUI's output folder, and the file behind a VIDEO."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import InputImpl

from ..packforcing_core.errors import PackForcingError

# The front end replaces %date:...% for the native save nodes only.
_DATE = re.compile(r"%date(?::([^%]*))?%")
_WIDGET = re.compile(r"%([^%.:]+)\.([^%]+)%")
_NO_PART_OF_A_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
LONGEST_VALUE = 80
_DATE_PARTS = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}


_newest: dict[tuple[str, str], Path] = {}
_lost: Counter[tuple[str, str]] = Counter()


def note_written(node_id: str, filename_prefix: str, path: Path) -> None:
    """Notes the newest file of a node, for `times_lost`. The prefix tells nodes of one id in two workflows apart."""
    _newest[node_id, filename_prefix] = path


def times_lost(node_id: str, filename_prefix: str | None) -> int:
    """How often a newest file of a node was found deleted or renamed; of any prefix if it is None, as for one that is
    linked. In the node's fingerprint it makes ComfyUI run the node again, which it would not do for unchanged inputs.
    """
    own = [key for key in _newest.keys() | _lost.keys() if key[0] == node_id and filename_prefix in (None, key[1])]
    for key in own:
        if key in _newest and not _newest[key].exists():
            del _newest[key]
            _lost[key] += 1
    return sum(_lost[key] for key in own)


def video_path(filename_prefix: str, width: int, height: int) -> tuple[Path, str]:
    """Returns an unused mp4 path in ComfyUI's output folder, and its subfolder. Raises PackForcingError if the prefix
    is invalid.

    %date:yyyy-MM-dd% and ComfyUI's %year%, %width% and so on are filled in.
    """
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            fill_date(filename_prefix), folder_paths.get_output_directory(), width, height
        )
    except Exception as error:  # ComfyUI raises a bare Exception for a prefix that leaves the output folder.
        raise PackForcingError(f"Cannot write {filename_prefix!r}: {error}") from error
    return Path(os.path.join(folder, f"{name}_{counter:05}_.mp4")), subfolder


def fill_date(text: str) -> str:
    """ "%date:yyyy-MM-dd%" -> today's date; hh, mm and ss are the time. Colons are replaced, as file names cannot hold
    them.
    """

    def moment(match: re.Match[str]) -> str:
        wish = match.group(1) or "yyyyMMddhhmmss"
        form = re.sub("yyyy|yy|MM|dd|hh|mm|ss", lambda part: _DATE_PARTS[part.group()], wish)
        return time.strftime(form.replace(":", "-"))

    return _DATE.sub(moment, text)


def fill_widgets(text: str, prompt: dict | None) -> str:
    """ "%KSampler.seed%" -> that widget's value, for a node by title or class. Raises PackForcingError if no node has
    it.
    """

    def value(match: re.Match[str]) -> str:
        name, widget = match.groups()
        for node in (prompt or {}).values():
            titles = (node.get("_meta", {}).get("title"), node["class_type"])
            found = node["inputs"].get(widget)
            if name in titles and isinstance(found, str | int | float):
                return _NO_PART_OF_A_NAME.sub("_", str(found))[:LONGEST_VALUE]
        raise PackForcingError(
            f"The file name has {match.group()}, but no node {name!r} in this workflow has a widget {widget!r} with a "
            "value that is not linked."
        )

    return _WIDGET.sub(value, text)


def video_file(video, stack: ExitStack) -> Path:
    """The file of a VIDEO. A video in memory, or a part of a file, is written to a temporary file that `stack`
    removes.
    """
    source = video.get_stream_source()
    if isinstance(source, str) and _is_all_of(video, source):
        return Path(source)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=folder_paths.get_temp_directory()))
    target = Path(folder) / "video.mp4"
    video.save_to(str(target))
    return target


def _is_all_of(video, file: str) -> bool:
    """Whether a VIDEO shows its whole file: neither trimmed nor, as newer versions of ComfyUI can, cropped."""
    if video.get_active_trim_window() != (0.0, 0.0):
        return False
    # Only the size tells of a crop in every version.
    return video.get_dimensions() == InputImpl.VideoFromFile(file).get_dimensions()
