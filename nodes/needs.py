"""Checks that this ComfyUI meets the pack's requirements. Imports only the standard library."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

OLDEST_COMFYUI = (0, 23)


def unmet() -> str | None:
    """One sentence that names what is missing; None if all requirements are met."""
    comfyui = _comfyui_version()
    if comfyui is not None and comfyui < OLDEST_COMFYUI:
        needed, found = (".".join(map(str, version)) for version in (OLDEST_COMFYUI, comfyui))
        return f"PackForcing needs ComfyUI {needed} or newer and this is {found}: update ComfyUI."
    requirements = Path(__file__).resolve().parents[1] / "requirements.txt"
    lines = (line.strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    missing = [line for line in lines if line and not _is_met(line)]
    if missing:
        return (
            f"PackForcing needs {', '.join(missing)}: install with ComfyUI's own Python, "
            f'`python -m pip install -r "{requirements}"`, and start ComfyUI again.'
        )
    return None


def _comfyui_version() -> tuple[int, int] | None:
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    numbers = re.findall(r"\d+", __version__)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) >= 2 else None


def _is_met(requirement: str) -> bool:
    """Whether the installed version meets a requirement such as "rich>=13"; an unreadable version counts as met."""
    name, _, least = requirement.partition(">=")
    try:
        found = importlib.metadata.version(name.strip())
    except importlib.metadata.PackageNotFoundError:
        return False
    numbers = re.match(r"\d+(\.\d+)*", found)
    return not numbers or not least or _parts(numbers.group()) >= _parts(least)


def _parts(version: str) -> tuple[int, ...]:
    """ "0.4.0" -> (0, 4), so that 13 equals 13.0."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", version.strip()).split(".")))
