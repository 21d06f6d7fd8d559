"""The stored prompt and start of a render, and whether wanted ones are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..text.script import Script
from .files import FolderError, read_tensors, write_tensors
from .fingerprint import fingerprint
from .manifest import Manifest, Take

# Embeddings and latents of the same text and image differ by less than this part of their norm when they are computed
# on another processor or in another precision. Those of another word or image differ by much more.
ALIKE = 0.02


@dataclass(frozen=True, eq=False)
class Content:
    """What a render is conditioned on: its text embeddings, their `words` if known, and the latents [1, 16, T, h, w]
    that it starts from, if any.
    """

    script: Script
    words: str = ""
    start: Tensor | None = None


def stored_script(path: Path, take: Take, content: Content, notes: list[str]) -> tuple[Script | None, str]:
    """The stored text of a take if it is the same as the wanted one, or None and a description of the difference."""
    wanted = name_of(content.script)
    try:
        stored = read_script(path, take.prompt)
    except PackForcingError:
        if wanted != take.prompt:
            raise
        notes.append("Note: the stored prompt was damaged and has been written again")
        write_tensors(_prompt_path(path, wanted), content.script.tensors())
        return content.script, ""
    if wanted == take.prompt:
        return stored, ""
    if take.words and content.words and take.words != content.words:
        return None, f"prompt: the render has {take.words!r}, now {content.words!r}"
    problem = unlike(stored, content.script)
    if problem:
        return None, f"prompt: {problem}" + (f" than {take.words!r}" if take.words else " than the render has")
    notes.append("Note: this prompt has slightly different embeddings here; the render resumes with the stored ones")
    return stored, ""


def begins_alike(path: Path, take: Take, content: Content, finished: int) -> bool:
    """Whether the wanted text equals the stored one for all finished blocks."""
    stored = read_script(path, take.prompt)
    begun = [tuple(cue for cue in script.cues if cue.first_block < finished) for script in (stored, content.script)]
    return bool(begun[0]) and not unlike(*map(Script, begun))


def unlike(stored: Script, wanted: Script) -> str:
    """How the wanted text differs; empty if it is the same up to rounding differences."""
    shape = [
        [(cue.first_block, cue.blend_blocks, cue.recache, cue.change) for cue in script.cues]
        for script in (stored, wanted)
    ]
    if shape[0] != shape[1]:
        return "it changes at other times or in another way"
    pairs = zip(stored.cues, wanted.cues, strict=True)
    others = [number for number, (a, b) in enumerate(pairs, start=1) if not alike(a.context, b.context)]
    which = f" (number {others[0]})" if others and len(stored.cues) > 1 else ""
    return f"another text{which}" if others else ""


def alike(stored: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are equal up to rounding differences."""
    if stored.shape != wanted.shape:
        return False
    a, b = stored.double(), wanted.to(stored.device).double()
    return bool((a - b).norm() <= ALIKE * a.norm())


def stored_start(path: Path, wanted: Tensor | None, notes: list[str]) -> Tensor | None:
    """The stored latents of the render's start. Raises FolderError if the wanted ones are different."""
    if wanted is None:
        return None
    file = path / "start.safetensors"
    try:
        stored = read_tensors(file)[0]["latents"].clone()
    except (PackForcingError, KeyError):
        notes.append("Note: the stored start was damaged and has been written again")
        write_tensors(file, {"latents": wanted})
        return wanted
    if not alike(stored, wanted):
        raise FolderError(
            "The render on disk has other settings:\n  start: another image or video than the one it began from\n"
            "Set it back, choose another render name, or render mode new."
        )
    if not torch.equal(stored, wanted.cpu()):
        notes.append(
            "Note: the start image or video was encoded slightly differently here; the render resumes with the "
            "stored latents"
        )
    return stored


def write_content(path: Path, manifest: Manifest, content: Content) -> None:
    """Writes a render's text, start and manifest. The manifest is last, because it makes the render exist."""
    file = _prompt_path(path, manifest.takes[-1].prompt)
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        write_tensors(file, content.script.tensors())
    start = path / "start.safetensors"
    if content.start is not None and not start.exists():
        write_tensors(start, {"latents": content.start})
    manifest.write(path)


def name_of(script: Script) -> str:
    return fingerprint(script.tensors(), None)


def _prompt_path(path: Path, prompt: str) -> Path:
    return path / "prompts" / f"{prompt}.safetensors"


def read_script(path: Path, prompt: str) -> Script:
    tensors, _ = read_tensors(_prompt_path(path, prompt))
    if fingerprint(tensors, None) != prompt:
        raise FolderError(f"The prompt {prompt} in {path} is damaged. Use another render name, or render mode new.")
    return Script.from_tensors({name: tensor.clone() for name, tensor in tensors.items()})
