"""Runs the type checker on the two packages and on what ComfyUI loads: `python -m tests.typecheck`.

`nodes` imports the core relatively, as part of a folder of ComfyUI's whose name is the user's choice. So the checker
sees a copy in which that folder has a name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
NAME = "pack"
NO_SOURCE = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.md", "*.js", "web")


def main() -> int:
    with TemporaryDirectory() as folder:
        copy = Path(folder) / NAME
        copy.mkdir()
        shutil.copy2(ROOT / "__init__.py", copy)
        for package in ("nodes", "packforcing_core"):
            shutil.copytree(ROOT / package, copy / package, ignore=NO_SOURCE)
        settings = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
        command = [sys.executable, "-m", "mypy", *map(str, settings), "-p", NAME]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            print(line.removeprefix(f"{NAME}/").removeprefix(f"{NAME}\\"))
        print(done.stderr, file=sys.stderr, end="")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
