"""List the renders in a folder with size, age and state, and remove those that are named."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import PackForcingError
from ..folder.blocks import numbered_files
from ..folder.files import FolderError, checked_name, locked, refuse_links
from ..folder.folder import FINISHED
from ..folder.manifest import NAME, Manifest
from ..geometry import size_text

MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Listed:
    """A render on disk: its name, bytes, the seconds since something was written, and how far it is."""

    path: Path
    size: int
    age: float
    state: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where renders are: beside the videos, or ComfyUI's output/packforcing")
    parser.add_argument(
        "--clean", nargs="+", metavar="NAME", default=[], help="remove these renders; their finished videos stay"
    )


def run(options: argparse.Namespace) -> int:
    root = Path(options.folder)
    for name in options.clean:
        size = remove(root, name)
        print(f"removed {name}: {size_text(size)}")
    found = renders(root)
    for render in found:
        print(f"{render.path.name:<40} {size_text(render.size):>9}  {age_text(render.age):>12}  {render.state}")
    print(f"{len(found)} renders, {size_text(sum(render.size for render in found))}")
    return 0


def renders(root: Path) -> list[Listed]:
    """The renders in `root`, the newest first. PackForcingError where there is no such folder."""
    if not root.is_dir():
        raise PackForcingError(f"There is no folder {root}.")
    found = [_listed(path) for path in root.iterdir() if not path.is_symlink() and (path / NAME).is_file()]
    return sorted(found, key=lambda render: render.age)


def _listed(path: Path) -> Listed:
    files = [file.stat() for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max(stat.st_mtime for stat in files)
    return Listed(path, sum(stat.st_size for stat in files), max(0.0, time.time() - newest), _state(path))


def _state(path: Path) -> str:
    try:
        manifest = Manifest.read(path)
    except FolderError:
        return "damaged manifest"
    there = {(file.block, file.take) for file in numbered_files(path / "blocks")}
    done = sum((block, manifest.take_of(block)) in there for block in range(manifest.blocks))
    finished = (path / FINISHED).exists() and done == manifest.blocks
    return "finished" if finished else f"unfinished: {done} of {manifest.blocks} blocks"


def remove(root: Path, name: str) -> int:
    """Removes the render `name` and returns its bytes; PackForcingError for what is none, or is being worked on."""
    path = root / checked_name(name)
    if path.is_symlink() or not (path / NAME).is_file():
        raise PackForcingError(f"There is no render {name!r} in {root}.")
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
