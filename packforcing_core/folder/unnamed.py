"""Renders without a name: found by the settings that decide their blocks, so that a longer one reuses a shorter one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from ..geometry import pixel_frames
from .blocks import Numbered, numbered_files
from .content import Content, write_content
from .files import FolderError, locked
from .fingerprint import fingerprint
from .folder import Mode, RenderFolder, open_render
from .manifest import NAME, Manifest, difference


def open_unnamed(
    root: Path, prefix: str, mode: Mode, wanted: Manifest, content: Content, block_shape: tuple[int, ...]
) -> RenderFolder:
    """The folder PREFIX-KEY-BLOCKS below `root`. KEY is a hash of everything that decides the blocks; BLOCKS is their
    number.

    If it does not exist, mode resume creates it with the finished blocks of renders of other lengths, as hard links if
    the disk supports them. Those renders stay unchanged. If that folder has become another render by its name, by a
    retake or an extension, mode resume takes the next free name. Raises the errors of `open_render`.
    """
    key = fingerprint([dict(wanted.settings), vars(wanted.takes[0]), content.start], None)[:12]
    named = path = root / f"{prefix}-{key}-{wanted.blocks}"
    told: tuple[str, ...] = ()
    if mode == "resume":
        path = next(place for place in _names(named) if not _is_another(place, wanted))
        if path != named:
            told = (f"Note: {named.name} was changed by a retake or an extension, so this is {path.name}",)
        if not (path / NAME).exists():
            told += _begin(path, wanted, content)
    folder = open_render(root, path.name, mode, wanted, content, block_shape)
    return replace(folder, notes=(*told, *folder.notes))


def _names(path: Path) -> Iterator[Path]:
    """The path, and the same with .1, .2, ..."""
    yield path
    yield from (path.with_name(f"{path.name}.{number}") for number in count(1))


def _is_another(path: Path, wanted: Manifest) -> bool:
    """Whether the folder holds a whole manifest of another render than the wanted one."""
    try:
        found = Manifest.read(path)
    except FolderError:
        return False
    return len(found.takes) > 1 or bool(difference(found, wanted))


def _begin(path: Path, wanted: Manifest, content: Content) -> tuple[str, ...]:
    """Adds the blocks of the longest matching render to the new render; returns a note on it."""
    siblings = list(_siblings(path, wanted))
    if not siblings:
        return ()
    source, found, files = max(siblings, key=lambda sibling: len(sibling[2]))
    try:
        (path / "blocks").mkdir(parents=True, exist_ok=True)
        with locked(path):
            for file in files:
                _share(file.path, path / "blocks" / file.path.name)
            write_content(path, replace(found, blocks=wanted.blocks), content)
    except OSError as error:
        raise FolderError(f"The blocks of {source} cannot be used in {path}: {error}.") from error
    fps, frames = (float(str(wanted.settings[name])) for name in ("fps", "frames_per_block"))
    seconds = pixel_frames(len(files) * int(frames)) / fps
    return (f"Note: the first {seconds:.1f} s were rendered before, as {source.name}, and are reused",)


def _siblings(path: Path, wanted: Manifest) -> list[tuple[Path, Manifest, list[Numbered]]]:
    """Renders with the same key: folder, manifest, and the block files from the first one up to a gap."""
    siblings = []
    stem = path.name.rpartition("-")[0]
    for other in path.parent.glob(f"{stem}-*"):
        if other == path or other.is_symlink() or not re.fullmatch(r"[0-9]+", other.name[len(stem) + 1 :]):
            continue
        try:
            found = Manifest.read(other)
        except FolderError:
            continue
        if len(found.takes) > 1 or difference(found, replace(wanted, blocks=found.blocks)):
            continue
        by_block = {file.block: file for file in numbered_files(other / "blocks") if file.take == 0}
        files = [by_block[block] for block in range(min(found.blocks, wanted.blocks)) if block in by_block]
        whole = [file for place, file in enumerate(files) if file.block == place and not file.path.is_symlink()]
        if whole:
            siblings.append((other, found, whole))
    return siblings


def _share(source: Path, target: Path) -> None:
    """Hard-links the file; copies it if the file system has no hard links."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
