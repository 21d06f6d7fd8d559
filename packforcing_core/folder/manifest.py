"""What a render is: its settings, its takes, and what made it. Plain JSON, read back as untrusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files import FolderError, read_json, write_json

SCHEMA = 1
NAME = "manifest.json"
LARGEST_BYTES = 1_000_000
MOST_BLOCKS = 10_000_000
_HASH = re.compile(r"[0-9a-f]{32}")
_LONGEST_TEXT = 10_000

Setting = int | float | bool | str | None | list["Setting"]


@dataclass(frozen=True)
class Take:
    """From block `first_block` on the render has this seed and prompt (the hash of its embeddings)."""

    first_block: int
    seed: int
    prompt: str


@dataclass(frozen=True)
class Manifest:
    """`settings` decide the latents besides seed, prompt and length, `versions` tell what made them.

    A later take replaces the blocks from its first one on; the blocks of an earlier take stay on disk.
    """

    settings: Mapping[str, Setting]
    blocks: int
    takes: tuple[Take, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    def take_of(self, block: int) -> int:
        """The number of the take that block `block` is from."""
        return max(number for number, take in enumerate(self.takes) if take.first_block <= block)

    def pieces(self) -> list[tuple[int, int]]:
        """(take, the block before which it ends) in order of time, takes without a block left out."""
        starts = sorted({take.first_block for take in self.takes if take.first_block < self.blocks})
        ends = [*starts[1:], self.blocks]
        pieces = [(self.take_of(start), end) for start, end in zip(starts, ends, strict=True)]
        return [p for p, following in zip(pieces, [*pieces[1:], (-1, 0)], strict=True) if p[0] != following[0]]

    def write(self, folder: Path) -> None:
        content = {"schema": SCHEMA, **asdict(self)}
        write_json(folder / NAME, content)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in `folder`. FolderError where it is missing, of another schema, or not what we write."""
        path = folder / NAME
        content = read_json(path, LARGEST_BYTES)
        problem = _problem(content)
        if problem:
            raise FolderError(f"{path} is not a manifest of this version: {problem}. Use another name, or mode new.")
        takes = tuple(Take(**take) for take in content["takes"])
        return cls(content["settings"], content["blocks"], takes, content["versions"])


def difference(found: Manifest, wanted: Manifest) -> list[str]:
    """What differs between a render on disk and the one that is wanted, a line each; versions do not count."""
    mine, theirs = _flat(wanted), _flat(found)
    return [
        f"{name}: the render has {theirs.get(name, 'nothing')}, now {mine.get(name, 'nothing')}"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]


def _flat(manifest: Manifest) -> dict[str, Any]:
    last = manifest.takes[-1]
    own = {"blocks": manifest.blocks, "seed": last.seed, "prompt": last.prompt}
    return {**manifest.settings, **own}


def _problem(content: Any) -> str:
    """Why `content` is no manifest; empty where it is one."""
    if not isinstance(content, dict) or set(content) != {"schema", "settings", "blocks", "takes", "versions"}:
        return "its keys are others"
    if type(content["schema"]) is not int or content["schema"] != SCHEMA:
        return f"its schema is {content['schema']!r}, expected {SCHEMA}"
    if not _is_count(content["blocks"], MOST_BLOCKS) or content["blocks"] == 0:
        return f"its number of blocks is {content['blocks']!r}"
    if not isinstance(content["settings"], dict) or not all(_is_setting(v) for v in content["settings"].values()):
        return "its settings are not plain values"
    if not isinstance(content["versions"], dict) or not all(_is_text(v) for v in content["versions"].values()):
        return "its versions are not texts"
    takes = content["takes"]
    if not isinstance(takes, list) or not takes or not all(_is_take(take) for take in takes):
        return "its takes are damaged"
    return "" if takes[0]["first_block"] == 0 else "its first take does not begin at block 0"


def _is_take(take: Any) -> bool:
    return (
        isinstance(take, dict)
        and set(take) == {"first_block", "seed", "prompt"}
        and _is_count(take["first_block"], MOST_BLOCKS)
        and _is_count(take["seed"], 2**64)
        and isinstance(take["prompt"], str)
        and _HASH.fullmatch(take["prompt"]) is not None
    )


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_setting(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 4 and len(value) <= _LONGEST_TEXT and all(_is_setting(v, depth + 1) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (int, bool) or _is_text(value)
