"""The finished blocks, one small file each, with all that is needed to repeat a block without denoising it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.ledger import Selection
from ..errors import PackForcingError
from ..sampler.denoising import BlockDone
from .files import FolderError, read_tensors, remove_unfinished, write_tensors
from .manifest import Manifest

_NUMBERED = re.compile(r"([0-9]{6,8})-([0-9]{1,6})\.safetensors")
_OPTIONAL = ("tokens", "in_flight")


class Numbered(NamedTuple):
    """A file that belongs to block `block` of take `take`."""

    block: int
    take: int
    path: Path


def file_name(block: int, take: int) -> str:
    return f"{block:06}-{take}.safetensors"


def numbered_files(folder: Path) -> list[Numbered]:
    """The files in `folder` that are named by block and take, in any order; other files are ignored."""
    matches = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("*"))
    return [Numbered(int(match[1]), int(match[2]), path) for match, path in matches if match]


class BlockStore:
    """Finished blocks by number and take, as `BlockDone` events.

    Each file is read and checked once, when the store is opened. `damaged` lists files that changed since they were
    written, or that belong to another block or render; they count as missing and are replaced when their block is
    sampled again.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        self.folder, self.shape = folder, shape
        self.damaged: list[Numbered] = []
        self._manifest: Manifest
        self._sound: dict[int, bool] = {}
        self._waiting: dict[int, BlockDone] = {}
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)

    def check(self, manifest: Manifest) -> None:
        """Reads and checks the files of the takes in `manifest`, to which all calls from now on refer."""
        self._manifest = manifest
        self._sound.clear()
        self.damaged.clear()
        for file in sorted(numbered_files(self.folder)):
            if file.block >= manifest.blocks or file.take != manifest.take_of(file.block):
                continue
            try:
                done = self.load(file.block)
            except PackForcingError:
                self.damaged.append(file)
            else:
                self._sound[file.block] = done.tokens is not None

    def has(self, block: int) -> bool:
        return block in self._sound

    def has_tokens(self, block: int) -> bool:
        """Whether the block is there with its compressed tokens."""
        return self._sound.get(block, False)

    def expect(self, done: BlockDone) -> None:
        """Holds a block that another thread is about to save; `load` returns it until then."""
        self._waiting[done.block] = done

    def save(self, done: BlockDone) -> None:
        path, plain = self._file(done.block)
        tensors = {"latents": done.latents, **_packed("selected", done.selection)}
        tensors |= _packed("sampled_selected", done.sampled_selection)
        tensors |= {name: tensor for name in _OPTIONAL if (tensor := getattr(done, name)) is not None}
        write_tensors(path, tensors, plain)
        self._sound[done.block] = done.tokens is not None
        self._waiting.pop(done.block, None)

    def load(self, block: int) -> BlockDone:
        """The block. Raises FolderError if its file is damaged or belongs to another block or render."""
        waiting = self._waiting.get(block)
        if waiting is not None:
            return replace(waiting, reused=True)
        path, marks = self._file(block)
        tensors, plain = read_tensors(path)
        latents = tensors.get("latents")
        if plain != marks:
            raise FolderError(f"{path} belongs to another block or render: {str(plain)[:200]}.")
        if latents is None or tuple(latents.shape) != self.shape or latents.dtype != torch.float32:
            raise FolderError(f"{path} holds no block of this render.")
        selection, sampled = (_unpacked(name, tensors, path) for name in ("selected", "sampled_selected"))
        # Copied, because memory that is mapped from a file changes with it.
        tokens, in_flight = (tensors[name].clone() if name in tensors else None for name in _OPTIONAL)
        return BlockDone(
            block, latents.clone(), True, selection, tokens, in_flight=in_flight, sampled_selection=sampled
        )

    def _file(self, block: int) -> tuple[Path, dict]:
        """The block's file, and what it carries to show that it belongs there."""
        take = self._manifest.take_of(block)
        return self.folder / file_name(block, take), {"block": block, "take": take, **self._manifest.key(take)}


def _packed(name: str, selection: Selection) -> dict[str, Tensor]:
    """The selections of all layers in one tensor called `name`, and the length of each."""
    if not selection:
        return {}
    chosen = torch.tensor([number for choice in selection for number in choice], dtype=torch.int32)
    return {name: chosen, f"{name}_by_layer": torch.tensor([len(choice) for choice in selection])}


def _unpacked(name: str, tensors: dict[str, Tensor], path: Path) -> Selection:
    if name not in tensors:
        return ()
    chosen, counts = (tensors[part].tolist() if part in tensors else [] for part in (name, f"{name}_by_layer"))
    if sum(counts) != len(chosen):
        raise FolderError(f"{path} has no record of what the block selected.")
    ends = accumulate(counts)
    return tuple(tuple(chosen[end - count : end]) for count, end in zip(counts, ends, strict=True))
