"""List the renders in a folder with size, age and state, or remove the ones that you name."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..folder.listing import age_text, remove, renders
from ..geometry import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        default=".",
        help="where the renders are, beside your videos or in ComfyUI's output/packforcing; or one render's folder",
    )
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
        row = f"{render.path.name:<40} {size_text(render.size):>9}  {age_text(render.age):>12}  {render.state:<25}"
        print(f"{row}  {render.about}")
    if found:
        count = "1 render" if len(found) == 1 else f"{len(found)} renders"
        print(f"{count}, {size_text(sum(render.size for render in found))}")
        return 0
    print(f"No renders in {root.resolve()}.")
    print("Without --folder, a render's folder is beside its video and is removed when the video is finished.")
    below = [path for path in (root / "packforcing", root / "output" / "packforcing") if path.is_dir()]
    if below:
        print(f"ComfyUI's renders are in {below[0]}")
    return 0
