"""Latents and selections of the finished blocks, one small file each; and the states that a render can go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..sampler.rollout import BlockDone
from .files import FolderError, read_tensors, remove_unfinished, write_tensors
from .manifest import Manifest

_NUMBERED = re.compile(r"([0-9]{6,8})-([0-9]{1,6})\.safetensors")


class Numbered(NamedTuple):
    """A file that belongs to block `block` of take `take`."""

    block: int
    take: int
    path: Path


def file_name(block: int, take: int) -> str:
    return f"{block:06}-{take}.safetensors"


def numbered_files(folder: Path) -> list[Numbered]:
    """The files of `folder` that are named by block and take, in any order; others are passed over."""
    matches = ((_NUMBERED.fullmatch(path.name), path) for path in folder.iterdir())
    return [Numbered(int(match[1]), int(match[2]), path) for match, path in matches if match]


class BlockStore:
    """Finished blocks by number and take, as `BlockDone` events."""

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        self.folder, self._shape = folder, shape
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)

    def known(self, manifest: Manifest) -> int:
        """How many blocks from the first on are there without a gap."""
        there = {(file.block, file.take) for file in numbered_files(self.folder)}
        block = 0
        while block < manifest.blocks and (block, manifest.take_of(block)) in there:
            block += 1
        return block

    def save(self, done: BlockDone, take: int) -> None:
        tensors = {"latents": done.latents}
        if done.in_flight is not None:
            tensors["in_flight"] = done.in_flight
        write_tensors(self.folder / file_name(done.block, take), tensors, [list(choice) for choice in done.selection])

    def load(self, block: int, take: int) -> BlockDone:
        path = self.folder / file_name(block, take)
        tensors, plain = read_tensors(path)
        latents = tensors.get("latents")
        if latents is None or tuple(latents.shape) != self._shape or latents.dtype != torch.float32:
            raise FolderError(f"{path} holds no block of this render. Delete it: it is then made again, the same.")
        if not _is_selection(plain):
            raise FolderError(f"{path} lacks what the block had selected. Delete it: it is then made again, the same.")
        in_flight = tensors.get("in_flight")
        if in_flight is not None:
            in_flight = in_flight.clone()
        selection = tuple(tuple(choice) for choice in plain)
        return BlockDone(block, latents.clone(), True, selection, in_flight=in_flight)


def _is_selection(plain: Any) -> bool:
    return isinstance(plain, list) and all(
        isinstance(choice, list) and all(type(number) is int for number in choice) for choice in plain
    )


class StateStore:
    """States from which a render goes on, named by the block that comes next; the oldest are dropped."""

    def __init__(self, folder: Path, kept: int = 2):
        self.folder, self._kept = folder, kept
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)

    def has(self, block: int, take: int) -> bool:
        return (self.folder / file_name(block, take)).exists()

    def save(self, block: int, take: int, tensors: Mapping[str, Tensor], plain: Any = None) -> None:
        """The state before block `block`, whose predecessor is of take `take`."""
        write_tensors(self.folder / file_name(block, take), tensors, plain)
        for old in sorted(numbered_files(self.folder), key=lambda file: (file.take, file.block))[: -self._kept]:
            old.path.unlink()

    def of_takes(self, manifest: Manifest, at_most: int) -> list[Numbered]:
        """The states before block `at_most` or an earlier one that lie on the way of these takes, newest first."""
        files = (file for file in numbered_files(self.folder) if 0 < file.block <= min(at_most, manifest.blocks))
        return sorted((file for file in files if manifest.take_of(file.block - 1) == file.take), reverse=True)

    def readable(self, manifest: Manifest, at_most: int) -> Iterator[tuple[int, dict[str, Tensor], Any]]:
        """(block, tensors, plain) of `of_takes`; a damaged file is passed over, for there is always an older way."""
        for file in self.of_takes(manifest, at_most):
            with suppress(PackForcingError):
                yield file.block, *read_tensors(file.path)

    def clear(self) -> None:
        for file in numbered_files(self.folder):
            file.path.unlink()
