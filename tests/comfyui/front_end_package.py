"""Another version of ComfyUI's front end than the one that is installed, for the browser tests.

`PACKFORCING_FRONT_END=1.58.1` (or `newest`) runs them with that version: it is fetched from the package index into the
cache folder, and the server is started with `--front-end-root`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import platformdirs
from filelock import FileLock

VARIABLE = "PACKFORCING_FRONT_END"
PACKAGE = "comfyui-frontend-package"
STATIC = Path("comfyui_frontend_package") / "static"


def front_end_version() -> str:
    """The version that the tests run with."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "newest":
        return _newest()
    return wanted or version(PACKAGE)


def front_end_arguments() -> tuple[str, ...]:
    """What the server is started with: nothing for the version that is installed."""
    wanted = front_end_version()
    return () if wanted == version(PACKAGE) else ("--front-end-root", str(_fetched(wanted)))


def _newest() -> str:
    told = _pip("index", "versions", PACKAGE)
    found = re.search(rf"{PACKAGE} \(([\d.]+)\)", told)
    if found is None:
        raise RuntimeError(f"pip names no newest version of {PACKAGE}: {told[:500]}")
    return found.group(1)


def _fetched(wanted: str) -> Path:
    folder = platformdirs.user_cache_path("packforcing") / f"comfyui-frontend-{wanted}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not (folder / STATIC / "index.html").is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _pip("download", "--no-deps", "-d", scratch, f"{PACKAGE}=={wanted}")
                (wheel,) = Path(scratch).glob("*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(folder)
    return folder / STATIC


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout
