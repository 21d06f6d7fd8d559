"""Opening a render's folder in one of four modes.

folder = open_render(root, "lighthouse", "resume", wanted, Content(script, "a lighthouse"), block_shape)

lighthouse/
  manifest.json      settings, takes, versions
  prompts/           text embeddings by their hash
  start.safetensors  latents that the render begins from, encoded
  blocks/            all that is needed to repeat a block; 000012-0.safetensors: block 12 of take 0
  `film`/            the growing video, and checksums of its segments
  telemetry.jsonl    one line per event
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from ..errors import PackForcingError
from ..geometry import PIXEL_FRAMES_PER_LATENT, block_count
from ..text.script import Script
from .blocks import BlockStore, numbered_files
from .content import Content, begins_alike, name_of, read_script, stored_script, stored_start, unlike, write_content
from .files import FolderError, checked_name, locked, read_tensors, refuse_links, remove_unfinished, write_json
from .manifest import NAME, Manifest, difference
from .telemetry import Telemetry

Mode = Literal["resume", "new", "extend", "retake"]
MODES: tuple[Mode, ...] = get_args(Mode)
FINISHED = "finished.json"
"""Marker file: the video of this render has been finished once."""
_LENGTH = ("blocks", "seconds")


@dataclass(frozen=True)
class RenderFolder:
    """One render on disk. `notes` are what the user should know about how it was opened."""

    path: Path
    manifest: Manifest
    blocks: BlockStore
    telemetry: Telemetry
    content: Content
    notes: tuple[str, ...] = ()

    @property
    def known_blocks(self) -> int:
        """Number of finished blocks on disk; a damaged one in between does not count."""
        return self.manifest.blocks - len(self.missing_blocks())

    def missing_blocks(self) -> list[int]:
        """Blocks that still have to be sampled (or sampled again), in order."""
        return [block for block in range(self.manifest.blocks) if not self.blocks.has(block)]

    def ensure(self) -> None:
        """Creates the folder again if it was removed after it was opened.

        Raises FolderError if another process has changed the render.
        """
        if (self.path / NAME).exists():
            if Manifest.read(self.path) != self.manifest:
                raise FolderError(
                    f"Another program has changed the render in {self.path}. Run this again from its start."
                )
        else:
            self.blocks.folder.mkdir(parents=True, exist_ok=True)
            write_content(self.path, self.manifest, self.content)
        self.blocks.check(self.manifest)

    def finish(self, video: str | None) -> None:
        """Notes that the render is finished, as the file `video` or, None, without one."""
        write_json(self.path / FINISHED, {"video": video})

    def script(self, take: int) -> Script:
        """The text embeddings of a take."""
        return read_script(self.path, self.manifest.takes[take].prompt)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """The first blocks behind hard cuts, each under the text of the take that it is from."""
        last = len(self.manifest.takes) - 1
        scripts = {
            take: self.content.script if take == last else self.script(take) for take, _ in self.manifest.pieces()
        }
        return frozenset(b for take, script in scripts.items() for b in script.cuts if self.manifest.take_of(b) == take)

    def scene_start(self, block: int) -> int:
        """The first block of the scene that `block` belongs to."""
        return max((cut for cut in self.cuts if cut <= block), default=0)


def open_render(
    root: Path,
    name: str,
    mode: Mode,
    wanted: Manifest,
    content: Content,
    block_shape: tuple[int, ...],
    retake_block: int = 0,
) -> RenderFolder:
    """Opens the folder `name` below `root` for the wanted render; `wanted` has one take, that of the content.

    "resume" continues the render, or starts it. "new" starts over and renames the existing render to name.1, name.2,
    ... (unless that is this very render, unfinished: then it resumes). "extend" makes the render longer; new prompts in
    the content apply after its finished blocks. "retake" keeps the blocks before `retake_block` and samples the rest
    again. Repeating a call with the same mode changes nothing, so it can be repeated after any crash.

    A text or start that differs from the stored one only by rounding is replaced by the stored one: use `content` of
    the result. Damaged files are reported in `notes` and made again. Raises FolderError if the name is not allowed,
    another process uses the folder, there is nothing to extend or retake, the folder contains a symbolic link, or the
    stored settings differ; the message then lists the differences.
    """
    if mode not in MODES:
        raise FolderError(f"Got mode {mode!r}; expected one of {', '.join(MODES)}.")
    path = _below(root, name)
    try:
        return _opened(path, mode, wanted, content, block_shape, retake_block)
    except OSError as error:
        raise FolderError(
            f"The folder {path} cannot be used: {error.strerror or error}. Fix the cause, or choose another folder."
        ) from error


def _opened(
    path: Path, mode: Mode, wanted: Manifest, content: Content, block_shape: tuple[int, ...], retake_block: int
) -> RenderFolder:
    if mode == "new" and path.exists() and not _is_begun(path, wanted, content):
        _set_aside(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"The folder {path} cannot be created: {error}.") from error
    with locked(path):
        refuse_links(path)
        remove_unfinished(path)
        blocks = BlockStore(path / "blocks", block_shape)
        notes: list[str] = []
        found = _found(path, wanted, content, notes)
        if found is None and mode in ("extend", "retake"):
            raise FolderError(
                f"There is no render {path.name!r} to {mode} in {path.parent}. Render it first (render mode resume)."
            )
        manifest = wanted
        if found is not None:
            blocks.check(found)
            manifest, content = continued(found, wanted, content, mode, retake_block, path, blocks, notes)
            notes += _version_notes(found, wanted)
        if manifest is not found:
            write_content(path, manifest, content)
            blocks.check(manifest)
        if blocks.damaged:
            names = ", ".join(str(file.block) for file in blocks.damaged)
            notes.append(f"Note: damaged on disk, will be sampled again: block {names}")
    return RenderFolder(path, manifest, blocks, Telemetry(path), content, tuple(notes))


def continued(
    found: Manifest,
    wanted: Manifest,
    content: Content,
    mode: Mode,
    retake_block: int,
    path: Path,
    blocks: BlockStore,
    notes: list[str],
) -> tuple[Manifest, Content]:
    """The updated manifest of an existing render, and its content. Raises FolderError if the render cannot become the
    wanted one.
    """
    last = len(found.takes) - 1
    finished = next(block for block in range(found.blocks + 1) if not blocks.has(block))
    content = replace(content, start=stored_start(path, content.start, notes))
    if mode == "retake":
        _require_same(found, wanted, (*_LENGTH, "seed"), [])
        if retake_block >= wanted.blocks:
            earlier = _length_of(retake_block - wanted.blocks + 1, wanted)
            raise FolderError(
                f"The retake begins after the end of the video and would change nothing. Begin it {earlier} earlier."
            )
        take = replace(wanted.takes[-1], first_block=retake_block)
        same = (found.takes[-1].first_block, found.takes[-1].seed) == (take.first_block, take.seed)
        stored, _ = stored_script(path, found.takes[last], content, notes) if same else (None, "")
        if stored is not None:
            return _lengthened(found, wanted.blocks), replace(content, script=stored)
        if retake_block > finished:
            missing = _length_of(retake_block - finished, wanted)
            raise FolderError(
                f"The retake begins {missing} after what is rendered. Begin it at least {missing} earlier, or render "
                "further first."
            )
        return replace(found, blocks=wanted.blocks, takes=(*found.takes, take)), content
    stored, problem = stored_script(path, found.takes[last], content, notes)
    longer = mode == "extend"
    if problem and longer and begins_alike(path, found.takes[last], content, finished):
        takes = (*found.takes[:-1], replace(found.takes[-1], prompt=name_of(content.script), words=content.words))
        found, problem = replace(found, takes=takes), ""
    if stored is not None:
        content = replace(content, script=stored)
    _require_same(found, wanted, _LENGTH if longer else (), [problem] if problem else [])
    if longer and wanted.blocks < found.blocks:
        raise FolderError(
            f"The render has {block_count(found.blocks)} and {wanted.blocks} were asked for; extend can only make it "
            "longer."
        )
    return _lengthened(found, wanted.blocks), content


def _length_of(blocks: int, manifest: Manifest) -> str:
    """How long so many blocks of a render are, none of them its first."""
    frames, fps = manifest.settings.get("frames_per_block"), manifest.settings.get("fps")
    if not isinstance(frames, int) or not isinstance(fps, int | float):
        return block_count(blocks)
    return f"{blocks * frames * PIXEL_FRAMES_PER_LATENT / fps:.2f} s"


def _lengthened(found: Manifest, blocks: int) -> Manifest:
    return found if blocks == found.blocks else replace(found, blocks=blocks)


def _require_same(found: Manifest, wanted: Manifest, free: Sequence[str], problems: list[str]) -> None:
    lines = [line for line in difference(found, wanted) if line.partition(":")[0] not in free] + problems
    if lines:
        raise FolderError(
            "The render on disk has other settings:\n  "
            + "\n  ".join(lines)
            + "\nSet them back, or choose another render name, or render mode 'new', which starts over. Render mode "
            "'extend' changes only the length; 'retake' only the seed and the prompt after a given time."
        )


def _found(path: Path, wanted: Manifest, content: Content, notes: list[str]) -> Manifest | None:
    """The manifest on disk, None if there is none. A damaged or missing one is recovered from the blocks."""
    try:
        return Manifest.read(path)
    except FolderError:
        recovered = _recovered(path, wanted, content)
        if recovered is None and ((path / NAME).exists() or numbered_files(path / "blocks")):
            raise
    if recovered is not None:
        notes.append("Note: the manifest was damaged or missing and has been written again")
        recovered.write(path)
    return recovered


def _recovered(path: Path, wanted: Manifest, content: Content) -> Manifest | None:
    """`wanted` as the manifest of the blocks on disk, if all of them belong to it."""
    marks = list(_marks(path))
    identities = {mark.get("render") for mark in marks}
    settings = {mark.get("settings") for mark in marks}
    identity = next(iter(identities), None)
    if (
        identity is None
        or len(identities) != 1
        or settings != {wanted.key(0)["settings"]}
        or any(mark.get("take") for mark in marks)
    ):
        return None
    for file in (path / "prompts").glob("*.safetensors"):
        try:
            stored = read_script(path, file.stem)
        except PackForcingError:
            continue
        if unlike(stored, content.script):
            return None
        wanted = replace(wanted, takes=(replace(wanted.takes[0], prompt=file.stem),))
    return replace(wanted, identity=identity)


def _marks(path: Path) -> Iterator[dict]:
    """The render, take and block numbers that the readable block files carry."""
    for file in numbered_files(path / "blocks"):
        try:
            marks = read_tensors(file.path)[1]
        except PackForcingError:
            continue
        if isinstance(marks, dict):
            yield marks


def _below(root: Path, name: str) -> Path:
    path = root / checked_name(name)
    if path.resolve().parent != root.resolve():  # A link instead of a folder could point anywhere.
        raise FolderError(f"{path} is a link out of {root}; remove it or use another name.")
    return path


def _is_begun(path: Path, wanted: Manifest, content: Content) -> bool:
    """Whether the folder holds the wanted render itself, unfinished: it was killed, and called again."""
    try:
        found = Manifest.read(path)
        if (path / FINISHED).exists() or len(found.takes) > 1 or difference(found, wanted):
            return False
        return stored_script(path, found.takes[0], content, [])[0] is not None
    except PackForcingError:
        return False


def _set_aside(path: Path) -> None:
    if path.is_dir():
        with locked(path):  # Raises if another process uses it.
            pass
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    try:
        os.replace(path, aside)
    except OSError as error:
        raise FolderError(f"{path} cannot be renamed to {aside.name}: {error}. Use another name.") from error


def _version_notes(found: Manifest, wanted: Manifest) -> list[str]:
    changed = [
        f"{name} {found.versions.get(name, 'unknown')} -> {version}"
        for name, version in wanted.versions.items()
        if found.versions.get(name) != version
    ]
    if not changed:
        return []
    return [
        f"Note: the render was started with other versions ({', '.join(changed)}): it resumes, but not bit for bit."
    ]
