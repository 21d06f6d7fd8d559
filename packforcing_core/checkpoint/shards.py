"""A checkpoint in several files, as Hugging Face stores large ones: NAME-00001-of-00006.safetensors beside an index.

Files outside the index's folder are never opened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import PackForcingError

_INDEX = ".safetensors.index.json"
_PIPELINE = "model_index.json"
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_MOST_SHARDS = 1000
_LARGEST_INDEX = 64 * 2**20


def find_shards(path: Path) -> list[Path] | None:
    """The shards that `path` (a folder, an index, or one shard) refers to, in order; None for any other file.

    Raises PackForcingError if a shard is missing or the index is damaged.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # A name longer than the system allows; opening the file reports it.
        return None
    part = _SHARD.fullmatch(path.name)
    if is_folder:
        return _in_folder(path)
    if is_file and path.name.endswith(_INDEX):
        return _of_index(path)
    return _siblings(path, part) if is_file and part else None


def _in_folder(folder: Path) -> list[Path] | None:
    """From the index in the folder, or its only safetensors file; of a diffusers pipeline, from its transformer's."""
    if (folder / _PIPELINE).is_file() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    indices = sorted(folder.glob(f"*{_INDEX}"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _of_index(indices[0])
    if len(indices) > 1 or len(files) > 1:
        some = ", ".join(path.name for path in (indices or files)[:3])
        raise PackForcingError(f"{folder} holds several checkpoints ({some}); expected one. Choose a file.")
    return files or None


def _of_index(index: Path) -> list[Path]:
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError("it is too long")
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted(set(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackForcingError(
            f"{index.name} is not an index of shards: it has no weight_map ({error!r:.100})."
        ) from error
    for name in files:
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\\:\0]", name):
            raise PackForcingError(
                f"{index.name} was refused: it names {name!r:.100}, which is not a file in its folder."
            )
    if not 1 <= len(files) <= _MOST_SHARDS:
        raise PackForcingError(f"{index.name} names {len(files):,} shards; expected 1 to {_MOST_SHARDS:,}.")
    return _present(index, [index.with_name(name) for name in files])


def _siblings(path: Path, part: re.Match) -> list[Path]:
    count = int(part["count"])
    if not 1 <= int(part["number"]) <= count <= _MOST_SHARDS:
        raise PackForcingError(f"{path.name} calls itself shard {int(part['number'])} of {count}, which is impossible.")
    names = [f"{part['name']}-{number:05}-of-{part['count']}.safetensors" for number in range(1, count + 1)]
    return _present(path, [path.with_name(name) for name in names])


def _present(path: Path, shards: list[Path]) -> list[Path]:
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise PackForcingError(
            f"{path.name} belongs to a checkpoint of {len(shards)} shards, but {', '.join(missing[:3])} is missing. "
            "Put all shards into one folder, or get the checkpoint as one file."
        )
    return shards
