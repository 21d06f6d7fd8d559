"""Files that exist complete or not at all, with checksums, read back as untrusted; and the lock of a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.files import open_tensors
from ..errors import PackForcingError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

UNFINISHED = "unfinished"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# What a lock that somebody else holds is answered with; anything else means that this file system has no locks.
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


class FolderError(PackForcingError):
    """A render's folder cannot be written or read: the message says what exists and how to continue."""


def checked_name(name: str) -> str:
    """`name` where it can name a folder on every system and cannot lead out of one; FolderError otherwise."""
    if not _NAME.fullmatch(name) or name[-1] in " ." or _DEVICES.fullmatch(name):
        raise FolderError(
            f"Got the render name {name[:120]!r}; expected 1 to 100 letters, digits, spaces, '.', '_' or '-', "
            "beginning with a letter or digit, and no name that Windows reserves."
        )
    return name


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A place near `path` to write to, which then takes the place of `path` at once and for good."""
    # A folder of its own, since what writes there may make further files on the way.
    unfinished = path.parent / UNFINISHED / path.name
    try:
        unfinished.parent.mkdir(exist_ok=True)
        yield unfinished
        with open(unfinished, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise FolderError(
            f"{path} cannot be written: {error}. Free some disk space or bring the folder back, then run the same "
            "again: it resumes from what is there."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Makes a new name last, where the file system can: some shares refuse, and the file is there all the same."""
    if sys.platform == "win32":  # Windows has no such thing, and needs none.
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any) -> None:
    with _appearing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], plain: Any = None) -> None:
    """A safetensors file with `plain` as JSON in its metadata, and a seal of all its content."""
    with _appearing(path) as unfinished:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(plain)
        save_file(contiguous, unfinished, metadata={"plain": text, "seal": _seal(contiguous, text)})


def _seal(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copy_start(source: Path, target: Path, size: int) -> None:
    """The first `size` bytes of a file as another."""
    with _appearing(target) as unfinished, open(source, "rb") as file, open(unfinished, "wb") as copy:
        while size > 0 and (data := file.read(min(size, 1 << 20))):
            size -= copy.write(data)


def read_json(path: Path, limit: int) -> Any:
    """The JSON of a file of at most `limit` bytes; FolderError for anything else."""
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise FolderError(f"{path} has more than {limit:,} bytes: it is no file of a render.")
        return json.loads(raw.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, FolderError) else FolderError(f"{path} cannot be read: {error}.") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors (on the CPU) and `plain` of `write_tensors`; PackForcingError for a damaged or foreign file."""
    file = open_tensors(path)
    if file.loaded is not None:
        raise FolderError(f"{path} is a torch file; a render's folder holds safetensors only.")
    text = file.metadata.get("plain", "null")
    tensors = file.load(file.tensors)
    if file.metadata.get("seal") != _seal(tensors, text):
        raise FolderError(f"{path} is damaged: its content is not what was written.")
    try:
        return tensors, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path} is damaged: {error}.") from error


def remove_unfinished(folder: Path) -> None:
    """Takes away what a crash left half written."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def refuse_links(folder: Path) -> None:
    """FolderError where anything below `folder` is a symbolic link, which could lead anywhere."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(place) / name).is_symlink():
                raise FolderError(f"{path} is a symbolic link. Put the file itself in its place, or remove the link.")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the system lets go of the lock when its holder dies, however that happens.

    FolderError when another process, or another render in this one, has the folder. Where the file system knows no
    locks there is none: a lock is a courtesy.
    """
    with open(folder / "lock", "a+b") as file:
        if _is_held(file):
            raise FolderError(
                f"The render in {folder} is being worked on already. Wait for it, interrupt it, or use another name."
            )
        yield


def _is_held(file: IO[bytes]) -> bool:
    """Tries to lock; whether somebody else has."""
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    return False
