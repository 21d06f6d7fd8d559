"""The renders in a folder: their size, age and state; and removing one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import PackForcingError
from ..geometry import block_count, pixel_frames, size_text
from ..sampler.start import LEFT_OUT
from .blocks import numbered_files
from .files import FolderError, checked_name, locked, refuse_links
from .folder import FINISHED
from .manifest import NAME, Manifest

MINUTE, HOUR, DAY = 60, 3600, 86400
FINISHED_STATE = "finished"
MOST_LETTERS = 60
"""Of a prompt in the list."""
WORTH_NAMING = 10_000_000
"""Bytes from which on unfinished renders are named on a node."""


@dataclass(frozen=True)
class Listed:
    """A render on disk: its folder, size in bytes, seconds since its last write, and progress."""

    path: Path
    size: int
    age: float
    state: str

    @property
    def about(self) -> str:
        """Length, size, policy, seed and, where it is known, the prompt: "29.8 s, 832x480, packforcing, seed 7: a fox".
        Empty for a damaged manifest.
        """
        manifest = _manifest(self.path)
        if manifest is None:
            return ""
        last, known = manifest.takes[-1], manifest.settings
        words = " ".join(last.words.split())[:MOST_LETTERS]
        size = f"{known.get('width')}x{known.get('height')}"
        return f"{_length(manifest)}, {size}, {known.get('policy')}, seed {last.seed}{f': {words}' if words else ''}"


def renders(root: Path) -> list[Listed]:
    """The renders in `root`, newest first, or `root` itself if it is one. Raises PackForcingError if the folder does
    not exist.
    """
    if not root.is_dir():
        raise PackForcingError(f"There is no folder {root}.")
    if (root / NAME).is_file():
        return [_listed(root.resolve())]  # Not "." or "..", which would show no name.
    return sorted(map(_listed, _folders(root)), key=lambda render: render.age)


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in root.iterdir() if not path.is_symlink() and (path / NAME).is_file())


def newest_note(root: Path) -> str:
    """One line with the names of the three newest renders in `root`."""
    names = [render.path.name for render in renders(root)[:3]] if root.is_dir() else []
    return f"The newest are: {', '.join(names)}." if names else f"There is none in {root} yet."


def others_note(root: Path, mine: Path) -> tuple[str, ...]:
    """One line on the other unfinished renders beside `mine`, if any. They stay until the user removes them."""
    try:
        # There may be many finished ones, whose sizes do not matter here.
        begun = (path for path in _folders(root) if path != mine and _state(path, _manifest(path)) != FINISHED_STATE)
        others = [_listed(path) for path in begun]
    except OSError:  # The folder does not exist yet, or another process is removing a render.
        return ()
    if not others:
        return ()
    total = sum(render.size for render in others)
    count = "1 other unfinished render takes" if len(others) == 1 else f"{len(others)} other unfinished renders take"
    if total < WORTH_NAMING:
        return (f"{count} {size_text(total)} in {root}.",)
    names = ", ".join(render.path.name for render in sorted(others, key=lambda render: -render.size)[:3])
    largest = "" if len(others) <= 3 else "the largest "
    return (f"{count} {size_text(total)} in {root}: {largest}{names}. Delete the folders that you no longer need.",)


def _listed(path: Path) -> Listed:
    files = [file.stat() for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max((stat.st_mtime for stat in files), default=time.time())
    size, age = sum(stat.st_size for stat in files), max(0.0, time.time() - newest)
    return Listed(path, size, age, _state(path, _manifest(path)))


def _manifest(path: Path) -> Manifest | None:
    """None if it is damaged."""
    try:
        return Manifest.read(path)
    except FolderError:
        return None


def _length(manifest: Manifest) -> str:
    """Of the video, in seconds; in blocks where the settings do not say it."""
    known = manifest.settings
    fps, per_block, given = (known.get(name) for name in ("fps", "frames_per_block", "start in latent frames"))
    if not isinstance(fps, int | float) or not isinstance(per_block, int) or fps <= 0:
        return block_count(manifest.blocks)
    frames = pixel_frames(manifest.blocks * per_block)
    if LEFT_OUT in str(known.get("start")) and isinstance(given, int):
        frames -= pixel_frames(given)
    return f"{frames / fps:.1f} s"


def _state(path: Path, manifest: Manifest | None) -> str:
    if manifest is None:
        return "damaged manifest"
    there = {(file.block, file.take) for file in numbered_files(path / "blocks")}
    done = sum((block, manifest.take_of(block)) in there for block in range(manifest.blocks))
    finished = (path / FINISHED).exists() and done == manifest.blocks
    return FINISHED_STATE if finished else f"unfinished: {done} of {block_count(manifest.blocks)}"


def remove(root: Path, name: str) -> int:
    """Removes the render `name` and returns its size in bytes. Raises PackForcingError if it is not a render, or in
    use.
    """
    path = root / checked_name(name)
    if path.is_symlink() or not (path / NAME).is_file():
        raise PackForcingError(f"There is no render {name!r} in {root.resolve()}.")
    refuse_links(path)
    with locked(path):
        size = _listed(path).size
        for file in sorted(path.rglob("*"), reverse=True):
            if file.name != "lock" or file.parent != path:
                file.rmdir() if file.is_dir() else file.unlink()
    (path / "lock").unlink()
    path.rmdir()
    return size


def age_text(seconds: float) -> str:
    for unit, length in (("days", DAY), ("hours", HOUR), ("minutes", MINUTE)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} old"
    return "just now" if seconds < MINUTE else "a minute old"
