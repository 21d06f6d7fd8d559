"""Opening a render's folder in one of four modes.

folder = open_render(root, "lighthouse", "resume", wanted, text, block_shape)

lighthouse/
  manifest.json      settings, takes, versions
  prompts/           text embeddings by their hash
  blocks/            latents and selections, 000012-0.safetensors: block 12 of take 0
  snapshots/         what carries over to the next block, every few blocks
  film/              the growing film, and the decoder's states
  telemetry.jsonl    a line per event
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from ..text.script import Script
from .blocks import BlockStore, StateStore
from .files import FolderError, checked_name, locked, read_tensors, remove_unfinished, write_tensors
from .fingerprint import fingerprint
from .manifest import NAME, Manifest, Take, difference
from .telemetry import Telemetry

Mode = Literal["resume", "new", "extend", "retake"]
MODES: tuple[Mode, ...] = get_args(Mode)
_OF_THE_TAKE = ("blocks", "seed", "prompt")


@dataclass(frozen=True)
class RenderFolder:
    """One render on disk. `notes` are what the user should know about how it was opened."""

    path: Path
    manifest: Manifest
    blocks: BlockStore
    snapshots: StateStore
    telemetry: Telemetry
    notes: tuple[str, ...] = ()

    @property
    def known_blocks(self) -> int:
        """Blocks that are finished and on disk."""
        return self.blocks.known(self.manifest)

    @property
    def film_folder(self) -> Path:
        return self.path / "film"

    def ensure(self, text: Tensor | Script) -> None:
        """Makes the folder anew where it has vanished since it was opened; `text` is of the last take.

        FolderError when another process has changed what it is to hold.
        """
        if (self.path / NAME).exists():
            if Manifest.read(self.path) != self.manifest:
                raise FolderError(
                    f"Another program has changed the render in {self.path}. Run this again from its start."
                )
            return
        for folder in (self.blocks.folder, self.snapshots.folder):
            folder.mkdir(parents=True, exist_ok=True)
        _write_prompt(self.path, self.manifest.takes[-1].prompt, Script.of(text))
        self.manifest.write(self.path)

    def discard_states(self) -> None:
        """Gives back the disk that states take, when the render is finished and nobody will go on with it."""
        self.snapshots.clear()
        for states in self.film_folder.glob("*/"):
            StateStore(states).clear()

    def remove(self) -> None:
        """Takes the whole render away."""
        shutil.rmtree(self.path)

    def script(self, take: int) -> Script:
        """The text embeddings of a take."""
        wanted = self.manifest.takes[take].prompt
        tensors = read_tensors(_prompt_path(self.path, wanted))[0]
        if fingerprint(tensors, None) != wanted:
            raise FolderError(f"The prompt {wanted} in {self.path} is damaged. Start the render anew.")
        return Script.from_tensors(tensors)


def open_render(
    root: Path,
    name: str,
    mode: Mode,
    wanted: Manifest,
    text: Tensor | Script,
    block_shape: tuple[int, ...],
    retake_block: int = 0,
) -> RenderFolder:
    """The folder `name` below `root`, made to hold what is wanted; `wanted` has one take, with seed and prompt.

    "resume" goes on with what is there, or begins; "new" begins, and sets aside what is there as name.1, name.2, ...;
    "extend" makes what is there longer; "retake" keeps the blocks before `retake_block` and makes the rest again.
    The same mode twice does the same as once, so a call can be repeated after any crash.

    Raises FolderError where the name is none, another process is at work there, there is nothing to extend or retake,
    or what is there has other settings; the difference is in the message.
    """
    if mode not in MODES:
        raise FolderError(f"Got mode {mode!r}; expected one of {', '.join(MODES)}.")
    path = _below(root, name)
    if mode == "new" and path.exists():
        _set_aside(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"The folder {path} cannot be made: {error}.") from error
    with locked(path):
        remove_unfinished(path)
        found = Manifest.read(path) if (path / NAME).exists() else None
        blocks = BlockStore(path / "blocks", block_shape)
        if found is None:
            if mode in ("extend", "retake"):
                raise FolderError(f"There is no render {name!r} to {mode} in {root}. Render it first (mode resume).")
            manifest = wanted
        else:
            manifest = continued(found, wanted, mode, retake_block, blocks.known(found))
        if manifest != found:
            _write_prompt(path, wanted.takes[-1].prompt, Script.of(text))
            manifest.write(path)
    notes = () if found is None else _version_notes(found, wanted)
    return RenderFolder(path, manifest, blocks, StateStore(path / "snapshots"), Telemetry(path), notes)


def continued(found: Manifest, wanted: Manifest, mode: Mode, retake_block: int, known: int) -> Manifest:
    """What the manifest of an existing render becomes; FolderError where it cannot become what is wanted."""
    if mode == "resume":
        _require_same(found, wanted, ())
        return found
    if mode == "extend":
        _require_same(found, wanted, ("blocks",))
        if wanted.blocks < found.blocks:
            raise FolderError(
                f"The render has {found.blocks} blocks, and {wanted.blocks} are wanted; extend only makes it longer."
            )
        return replace(found, blocks=wanted.blocks)
    _require_same(found, wanted, _OF_THE_TAKE)
    take = replace(wanted.takes[-1], first_block=retake_block)
    if found.takes[-1] != take and retake_block > known:
        raise FolderError(f"A retake from block {retake_block} needs the blocks before it, and {known} are there.")
    if retake_block >= wanted.blocks:
        raise FolderError(f"A retake from block {retake_block} of {wanted.blocks} changes nothing: go further back.")
    takes = found.takes if found.takes[-1] == take else (*found.takes, take)
    return replace(found, blocks=wanted.blocks, takes=takes)


def _require_same(found: Manifest, wanted: Manifest, free: Sequence[str]) -> None:
    lines = [line for line in difference(found, wanted) if line.partition(":")[0] not in free]
    if lines:
        raise FolderError(
            "The render on disk has other settings:\n  "
            + "\n  ".join(lines)
            + "\nSet them back, choose another render name, or mode new; extend changes the length, retake seed and "
            "prompt from a moment on."
        )


def _below(root: Path, name: str) -> Path:
    path = root / checked_name(name)
    if path.resolve().parent != root.resolve():  # A link in its place could lead anywhere.
        raise FolderError(f"{path} leads out of {root}; remove the link or use another name.")
    return path


def _set_aside(path: Path) -> None:
    if path.is_dir():
        with locked(path):  # Nobody is at work there.
            pass
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    try:
        os.replace(path, aside)
    except OSError as error:
        raise FolderError(f"{path} cannot be set aside as {aside.name}: {error}. Use another name.") from error


def _prompt_path(path: Path, prompt: str) -> Path:
    return path / "prompts" / f"{prompt}.safetensors"


def _write_prompt(path: Path, prompt: str, script: Script) -> None:
    file = _prompt_path(path, prompt)
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        write_tensors(file, script.tensors())


def _version_notes(found: Manifest, wanted: Manifest) -> tuple[str, ...]:
    changed = [
        f"{name} {found.versions.get(name, 'unknown')} -> {version}"
        for name, version in wanted.versions.items()
        if found.versions.get(name) != version
    ]
    if not changed:
        return ()
    return (f"Note: the render was begun with other versions ({', '.join(changed)}): it goes on, but not bit for bit.",)


def prompt_take(seed: int, text: Tensor | Script) -> Take:
    """The first take of a render with this seed and these text embeddings."""
    return Take(0, seed, fingerprint(Script.of(text).tensors(), None))
