"""Reading tensor files without trusting them: safetensors, and the `.pt` files of torch.

`open_tensors` reads names, shapes, dtypes and metadata only; tensors are read when they are asked for. The kind of a
file is told by its first bytes, since wrong extensions are common.
"""

from __future__ import annotations

import json
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

# The safetensors format's own limit on its header, in bytes.
MAX_HEADER_BYTES = 100_000_000

# Bits an element of each safetensors dtype takes (the format's list).
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

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

# How deep tables may lie in each other in a torch file, and how many entries they may have together. Real files nest
# three deep; a few bytes of a table that holds itself, or another twice, would otherwise unfold without end.
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
    """What a file holds: names as they are in it, nested names joined with dots. `loaded` is for torch files only."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    loaded: Mapping[str, Tensor] | None = None

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, on the CPU, in the file's dtype, memory-mapped where the format allows."""
        if self.loaded is not None:
            return {name: self.loaded[name] for name in names}
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, KeyError, AttributeError) as error:
            raise PackForcingError(f"{self.path.name} cannot be read: {error}. {_AGAIN}") from error


def open_tensors(path: str | PathLike[str]) -> TensorFile:
    """Names, shapes, dtypes and metadata of a safetensors or torch file, checked against the file's length.

    Raises PackForcingError where the file is missing, truncated, not what it claims to be, or would run code.
    """
    path = Path(path)
    start = _first_bytes(path)
    _refuse_other_formats(path, start)
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        tensors = _load_torch(path, is_zip=start.startswith(b"PK"))
        infos = {name: TensorInfo(tuple(t.shape), _dtype_name(t.dtype)) for name, t in tensors.items()}
        return TensorFile(path, infos, {}, tensors)
    return TensorFile(path, *read_safetensors_header(path))


def _first_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise PackForcingError(f"{path} is no file; expected a checkpoint (.safetensors, .pt or .pth).")
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:  # no permission, a name longer than the system's limit
        raise PackForcingError(f"{str(path)[:200]} cannot be opened: {error.strerror}.") from error


def read_safetensors_header(path: str | PathLike[str]) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(tensors, metadata) of a safetensors file from its header alone.

    Format: 8 bytes little-endian header length, JSON header, data; https://github.com/huggingface/safetensors.
    Raises PackForcingError for a header that is damaged or that does not fit the file's length.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES:
            raise PackForcingError(f"{path.name} is not a safetensors file: it says its header has {length:,} bytes.")
        if 8 + length > size:
            raise PackForcingError(
                f"{path.name} is truncated: its header has {length:,} bytes, the file {size:,}. {_AGAIN}"
            )
        raw = file.read(length)
    header = _parse_header(path, raw)
    metadata = _check_metadata(path, header.pop("__metadata__", {}))
    tensors: dict[str, TensorInfo] = {}
    ends = []
    for name, entry in header.items():
        info, begin, end = _check_entry(path, name, entry)
        tensors[name] = info
        ends.append((begin, end, name))
    _check_coverage(path, sorted(ends), size - 8 - length)
    return tensors, metadata


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if not start:
        raise PackForcingError(f"{path.name} is empty. {_AGAIN}")
    if start.startswith(b"GGUF"):
        raise PackForcingError(
            f"{path.name} is a GGUF file; expected .safetensors or .pt. "
            "Inside ComfyUI load it with a GGUF loader node and connect its MODEL."
        )
    if start.startswith(b"version https://git-lfs"):
        raise PackForcingError(f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`.")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise PackForcingError(f"{path.name} is a web page, not a checkpoint: the download went wrong. {_AGAIN}")


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackForcingError(f"{path.name} is not a safetensors file, or damaged: {error}. {_AGAIN}") from error
    if not isinstance(header, dict):
        raise PackForcingError(f"{path.name} is damaged: its header is no table of tensors. {_AGAIN}")
    return header


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise PackForcingError(f"{path.name} is damaged: its metadata is no table of strings. {_AGAIN}")
    return metadata


def _check_entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """One tensor's line of the header, and where its bytes begin and end."""
    problem = f"{path.name} is damaged: the header's entry of {name!r} is wrong"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PackForcingError(f"{problem}: expected dtype, shape and data_offsets. {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise PackForcingError(f"{problem}: unknown dtype {dtype!r}. {_AGAIN}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise PackForcingError(f"{problem}: shape {shape!r}, data_offsets {offsets!r}. {_AGAIN}")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise PackForcingError(
            f"{problem}: {shape} of {dtype} take {bits / 8:,.0f} bytes, not {end - begin:,}. {_AGAIN}"
        )
    return TensorInfo(tuple(shape), dtype), begin, end


def _are_counts(values: Any) -> bool:
    # type() rather than isinstance(): JSON's true is an int to Python.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_coverage(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The format wants the tensors to fill the data without holes or overlaps."""
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise PackForcingError(f"{path.name} is damaged: {name!r} begins at {begin:,}, not {position:,}. {_AGAIN}")
        position = end
    if position > data_bytes:
        raise PackForcingError(
            f"{path.name} is truncated: its header promises {position:,} bytes of data, it has {data_bytes:,}. {_AGAIN}"
        )
    if position < data_bytes:
        raise PackForcingError(
            f"{path.name} is damaged: {data_bytes - position:,} bytes follow the last tensor. {_AGAIN}"
        )


def _load_torch(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    if is_zip and not zipfile.is_zipfile(path):
        raise PackForcingError(f"{path.name} is truncated: its end is missing. {_AGAIN}")
    try:
        if path.suffix == ".safetensors":  # From 2.13 on torch believes the name, unless it is given the open file.
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
        else:
            # Only the zip format can be mapped into memory; files older than torch 1.6 are read whole.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise PackForcingError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle may raise anything
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise PackForcingError(f"{path.name} is damaged or no torch file: {first_line}. {_AGAIN}") from error
    return _flatten(path, content)


def _refusal(path: Path, error: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", error)
    if not found:
        reason = next((line for line in error.splitlines() if "WeightsUnpickler error" in line), error.splitlines()[0])
        return f"{path.name} is damaged, or holds more than tensors: {reason.strip()}. {_AGAIN}"
    what = found.group(1)
    return (
        f"{path.name} was refused: besides tensors it holds objects that could run code ({what}); nothing was run. "
        "Expected tensors only: get a .safetensors version, or save its tensors alone where you trust the file."
    )


def _flatten(path: Path, content: Any) -> dict[str, Tensor]:
    """Every tensor of nested tables, under its names from the outermost to its own, joined with dots."""
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
            f"{path.name} was refused: its tables lie more than {MAX_NESTING} deep in each other, or hold themselves."
        )
    for key, inner in value.items():
        if not isinstance(key, str | int | float):
            raise PackForcingError(f"{path.name} is damaged: a table in it has a name of type {type(key).__name__}.")
        yield from _entries(path, f"{name}.{key}" if name else str(key), inner, depth + 1)


def _plain_tensor(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise PackForcingError(f"{path.name} holds no data for {name!r}: it was saved from the meta device.")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise PackForcingError(f"{path.name} was refused: {name!r} is stored sparse; expected plain tensors.")
    return tensor.detach()


def _dtype_name(dtype: torch.dtype) -> str:
    return _TORCH_NAMES.get(dtype, str(dtype).removeprefix("torch."))
