"""Reading tensor files without trusting them: safetensors, whole or in shards, and the `.pt` files of torch.

`open_tensors` reads names, shapes, dtypes and metadata only; tensors are read on demand. The format is recognised by
the first bytes, because wrong file extensions are common.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import PackForcingError
from .shards import find_shards

_TORCH_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}

# Limits for nested tables in a torch file: depth and total number of entries. Real files nest three deep. Without
# limits, a few bytes of a table that contains itself would expand without end.
MAX_NESTING = 16
MAX_ENTRIES = 1_000_000

_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype (as safetensors spells it: "BF16", "F8_E4M3", ...) of one tensor in a file."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """The contents of a file: names as stored, nested names joined with dots. `loaded` is set for torch files only.

    `shards` maps each name to its file, for a checkpoint in several files.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    loaded: Mapping[str, Tensor] | None = None
    shards: Mapping[str, Path] | None = None

    @property
    def file_bytes(self) -> int:
        """Size on disk, of all shards together."""
        return sum(path.stat().st_size for path in {*(self.shards or {}).values()} or {self.path})

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, on the CPU, in the file's dtype, memory-mapped if the format allows."""
        names = list(names)
        if self.loaded is not None:
            return {name: self.loaded[name] for name in names}
        where = self.shards or dict.fromkeys(names, self.path)
        loaded: dict[str, Tensor] = {}
        for path in dict.fromkeys(where[name] for name in names):
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    loaded |= {name: file.get_tensor(name) for name in names if where[name] == path}
            except (SafetensorError, OSError, KeyError, AttributeError) as error:
                raise PackForcingError(f"{path.name} cannot be read: {error}. {_AGAIN}") from error
        return {name: loaded[name] for name in names}


def open_tensors(path: str | PathLike[str]) -> TensorFile:
    """Names, shapes, dtypes and metadata of a safetensors or torch file, checked against the file's length.

    A folder of shards, their index, or any single shard opens the whole checkpoint. Raises PackForcingError if the file
    is missing, truncated, of another format than it claims, or would run code.
    """
    path = Path(path)
    shards = find_shards(path)
    if shards is not None:
        return _join(path, [_open_one(shard) for shard in shards])
    return _open_one(path)


def _open_one(path: Path) -> TensorFile:
    start = _first_bytes(path)
    _refuse_other_formats(path, start)
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        tensors = _load_torch(path, is_zip=start.startswith(b"PK"))
        infos = {name: TensorInfo(tuple(t.shape), _dtype_name(t.dtype)) for name, t in tensors.items()}
        return TensorFile(path, infos, {}, tensors)
    return TensorFile(path, *_read_safetensors(path))


def _join(path: Path, parts: list[TensorFile]) -> TensorFile:
    """Joins the shards of a checkpoint."""
    shards: dict[str, Path] = {}
    for part in parts:
        if part.loaded is not None:
            raise PackForcingError(f"{part.path.name} is a torch file among shards; expected safetensors. {_AGAIN}")
        twice = next((name for name in part.tensors if name in shards), None)
        if twice is not None:
            raise PackForcingError(
                f"{twice} is in both {shards[twice].name} and {part.path.name}: these are not shards of one checkpoint."
            )
        shards |= dict.fromkeys(part.tensors, part.path)
    tensors = {name: info for part in parts for name, info in part.tensors.items()}
    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    return TensorFile(path, tensors, metadata, shards=shards)


def _first_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise PackForcingError(
                f"{str(path)[:200]} is not a file; expected a checkpoint (.safetensors, .pt, .pth) or a folder of "
                "shards."
            )
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:  # No permission, or a name longer than the system allows.
        raise PackForcingError(f"{str(path)[:200]} cannot be opened: {error.strerror}.") from error


def _read_safetensors(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(tensors, metadata) from the header, which the safetensors library checks against the file's length."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            infos = {name: TensorInfo(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
            return infos, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise PackForcingError(_damage(path, str(error))) from error


def _damage(path: Path, error: str) -> str:
    """An explanation of the library's error for the user; older versions write its error names in one word."""
    kind = re.sub(r"[^a-z]", "", error.lower())
    if any(sign in kind for sign in ("headertoosmall", "headertoolarge", "headerstart")):
        return f"{path.name} is not a safetensors file: it has no safetensors header. {_AGAIN}"
    size = f"the file has {path.stat().st_size:,} bytes"
    if "invalidheaderlength" in kind:
        return f"{path.name} is truncated, or not a safetensors file: {size}, its header needs more. {_AGAIN}"
    if "incomplete" in kind:
        return f"{path.name} is truncated or damaged: {size}, but its header needs another size. {_AGAIN}"
    return f"{path.name} is damaged, or not a safetensors file: {error[:200]}. {_AGAIN}"


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if not start:
        raise PackForcingError(f"{path.name} is empty. {_AGAIN}")
    if start.lstrip().startswith(b"{"):
        raise PackForcingError(f"{path.name} is a JSON file, not a checkpoint: choose the file with the weights.")
    if start.startswith(b"GGUF"):
        raise PackForcingError(
            f"{path.name} is a GGUF file; expected .safetensors or .pt. "
            "Inside ComfyUI load it with a GGUF loader node and connect its MODEL."
        )
    if start.startswith(b"version https://git-lfs"):
        raise PackForcingError(f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`.")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise PackForcingError(f"{path.name} is a web page, not a checkpoint: the download went wrong. {_AGAIN}")


def _load_torch(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    if is_zip and not zipfile.is_zipfile(path):
        raise PackForcingError(f"{path.name} is truncated: its end is missing. {_AGAIN}")
    try:
        if path.suffix == ".safetensors":  # From 2.13 on torch trusts the extension unless it gets an open file.
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
        else:
            # Only the zip format can be memory-mapped; files older than torch 1.6 are read completely.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise PackForcingError(_refusal(path, str(error))) from error
    except Exception as error:  # A damaged pickle may raise anything.
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise PackForcingError(f"{path.name} is damaged or not a torch file: {first_line}. {_AGAIN}") from error
    return _flatten(path, content)


def _refusal(path: Path, error: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", error)
    if not found:
        reason = next((line for line in error.splitlines() if "WeightsUnpickler error" in line), error.splitlines()[0])
        return f"{path.name} is damaged, or holds more than tensors: {reason.strip()}. {_AGAIN}"
    what = found.group(1)
    return (
        f"{path.name} was refused: it contains objects that could run code ({what}); nothing was run. "
        "Expected tensors only: get a .safetensors version, or, if you trust the file, save only its tensors."
    )


def _flatten(path: Path, content: Any) -> dict[str, Tensor]:
    """Every tensor in nested tables; the names of the tables and its own are joined with dots."""
    tensors: dict[str, Tensor] = {}
    for entries, (name, value) in enumerate(_entries(path, "", content, 0)):
        if entries >= MAX_ENTRIES:
            raise PackForcingError(f"{path.name} was refused: it has more than {MAX_ENTRIES:,} entries.")
        if not isinstance(value, Tensor):
            continue
        if name in tensors:
            raise PackForcingError(f"{path.name} is damaged: it has {name!r} twice. {_AGAIN}")
        tensors[name or "tensor"] = _plain_tensor(path, name, value)
    return tensors


def _entries(path: Path, name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    yield name, value
    if not isinstance(value, Mapping):
        return
    if depth == MAX_NESTING:
        raise PackForcingError(
            f"{path.name} was refused: its tables are nested more than {MAX_NESTING} deep, or contain themselves."
        )
    for key, inner in value.items():
        if not isinstance(key, str | int | float):
            raise PackForcingError(f"{path.name} is damaged: a table in it has a name of type {type(key).__name__}.")
        yield from _entries(path, f"{name}.{key}" if name else str(key), inner, depth + 1)


def _plain_tensor(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise PackForcingError(f"{path.name} holds no data for {name!r}: it was saved from the meta device.")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise PackForcingError(f"{path.name} was refused: {name!r} is a sparse tensor; expected dense tensors.")
    return tensor.detach()


def _dtype_name(dtype: torch.dtype) -> str:
    return _TORCH_NAMES.get(dtype, str(dtype).removeprefix("torch."))
