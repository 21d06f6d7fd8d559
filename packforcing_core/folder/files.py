"""Files that are written completely or not at all, with checksums, and read as untrusted; and the folder's lock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
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
RELEASED_S = 1.0
"""So long the lock of a killed process may last: an encoder that it was just starting holds it until it runs."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# Errors of a lock that is held by someone else; any other error means that the file system has no locks.
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


class FolderError(PackForcingError):
    """A render's folder cannot be written or read. The message says what exists and how to continue."""


def checked_name(name: str) -> str:
    """Returns `name` if it is a valid folder name on every system and stays inside its parent. Raises FolderError
    otherwise.
    """
    if not _NAME.fullmatch(name) or name[-1] in " ." or _DEVICES.fullmatch(name):
        raise FolderError(
            f"Got the render name {name[:120]!r}; expected 1 to 100 letters, digits, spaces, '.', '_' or '-', "
            "beginning with a letter or digit, and no name that Windows reserves."
        )
    return name


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A temporary path near `path` to write to, which then replaces `path` in one step."""
    # In a folder of its own, since some writers create further files beside theirs.
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
            f"{path} cannot be written: {error}. Free disk space or reconnect the folder, then run the same "
            "again to resume."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Makes a new name permanent (fsync). Some network shares refuse; the file exists anyway."""
    if sys.platform == "win32":  # Windows neither has nor needs it.
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
    """Writes a safetensors file with `plain` as JSON in its metadata, and a checksum of all its content."""
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
    """Copies the first `size` bytes of a file."""
    with _appearing(target) as unfinished, open(source, "rb") as file, open(unfinished, "wb") as copy:
        while size > 0 and (data := file.read(min(size, 1 << 20))):
            size -= copy.write(data)


def read_json(path: Path, limit: int) -> Any:
    """The JSON content of a file of at most `limit` bytes. Raises FolderError for anything else."""
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise FolderError(f"{path} has more than {limit:,} bytes: it is not a file of a render.")
        return json.loads(raw.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, FolderError) else FolderError(f"{path} cannot be read: {error}.") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors (on the CPU) and `plain` of `write_tensors`. Raises PackForcingError for a damaged or foreign file."""
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
    """Removes files that a crash left half written."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def refuse_links(folder: Path) -> None:
    """Raises FolderError if anything below `folder` is a symbolic link, which could point anywhere."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(place) / name).is_symlink():
                raise FolderError(f"{path} is a symbolic link. Put the file itself in its place, or remove the link.")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder for one writer. The system releases the lock when the process ends, even after a crash.

    Raises FolderError if another process, or another render in this one, holds the folder for longer than RELEASED_S.
    On a file system without locks nothing is locked.
    """
    with open(folder / "lock", "a+b") as file:
        latest = time.monotonic() + RELEASED_S
        while _is_held(file):
            if time.monotonic() > latest:
                raise FolderError(
                    f"The render in {folder} is in use. Wait for the other run, interrupt it, or use another name."
                )
            time.sleep(RELEASED_S / 20)
        yield


def _is_held(file: IO[bytes]) -> bool:
    """Tries to lock the file; returns whether someone else holds the lock."""
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    return False
