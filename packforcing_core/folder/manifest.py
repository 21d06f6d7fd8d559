"""The manifest of a render: its settings, takes, and versions. Plain JSON, read as untrusted."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..geometry import pixel_frames
from .files import FolderError, read_json, write_json
from .fingerprint import fingerprint

SCHEMA = 1
NAME = "manifest.json"
LARGEST_BYTES = 4_000_000
MOST_BLOCKS = 10_000_000
_HASH = re.compile(r"[0-9a-f]{32}")
_LONGEST_TEXT = 100_000
_KEYS = {"schema", "settings", "blocks", "takes", "versions", "identity", "seal"}
_OTHER_NODE = "another node, or other settings of it"
HASHED = {
    **dict.fromkeys(("model", "LoRAs", "VAE", "compressor"), "other weights"),
    **dict.fromkeys(("replaced parts", "attention"), _OTHER_NODE),
}
"""Settings that are fingerprints, with what makes them differ."""

Setting = int | float | bool | str | None | list["Setting"]


@dataclass(frozen=True)
class Take:
    """From block `first_block` on the render has this seed and prompt: the name of the file with its embeddings, and
    its `words` if known.
    """

    first_block: int
    seed: int
    prompt: str
    words: str = ""


@dataclass(frozen=True)
class Manifest:
    """`settings` decide the latents together with seed, prompt, start and length; `versions` names the software that
    made them. `identity` is unique to this render.

    A later take replaces the blocks from its `first_block` on; the blocks of an earlier take stay on disk.
    """

    settings: Mapping[str, Setting]
    blocks: int
    takes: tuple[Take, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    identity: str = field(default_factory=lambda: uuid4().hex, compare=False)

    def key(self, take: int) -> dict[str, str]:
        """What a block file of take `take` carries to show that it belongs to this render."""
        takes = [(each.first_block, each.seed) for each in self.takes[: take + 1]]
        return {"render": self.identity, "settings": fingerprint([dict(self.settings), takes])}

    def take_of(self, block: int) -> int:
        """The number of the take that block `block` belongs to."""
        return max(number for number, take in enumerate(self.takes) if take.first_block <= block)

    def pieces(self) -> list[tuple[int, int]]:
        """(take, end block) of each take in order of time; takes that have no block left are skipped."""
        return [(take, max(blocks) + 1) for take, blocks in groupby(range(self.blocks), self.take_of)]

    def write(self, folder: Path) -> None:
        content = {"schema": SCHEMA, **asdict(self)}
        write_json(folder / NAME, {**content, "seal": _seal(content)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in `folder`. Raises FolderError if it is missing, has another schema, or is invalid."""
        path = folder / NAME
        content = read_json(path, LARGEST_BYTES)
        problem = _problem(content)
        if problem:
            raise FolderError(
                f"{path} is damaged, or of another version: {problem}. Use another name, or render mode new."
            )
        takes = tuple(Take(**take) for take in content["takes"])
        return cls(content["settings"], content["blocks"], takes, content["versions"], content["identity"])


def difference(found: Manifest, wanted: Manifest) -> list[str]:
    """The differences between a render on disk and the wanted one, one line each, in the user's terms. Versions are not
    compared.
    """
    mine, theirs = _flat(wanted), _flat(found)
    names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    return [_difference_of(name, theirs.get(name), mine.get(name)) for name in names]


def _difference_of(name: str, theirs: Setting, mine: Setting) -> str:
    if name in HASHED:
        if None in (theirs, mine):
            return f"{name}: " + ("the render has none" if theirs is None else "the render has one, now there is none")
        return f"{name}: not the one that the render was started with ({HASHED[name]})"
    return f"{name}: the render has {_told(theirs)}, now {_told(mine)}"


def _told(value: Setting) -> str:
    if isinstance(value, list):
        return ", ".join(f"{number:.6g}" if isinstance(number, float) else str(number) for number in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _flat(manifest: Manifest) -> dict[str, Any]:
    settings = dict(manifest.settings)
    frames, fps = settings.get("frames_per_block"), settings.get("fps")
    length = manifest.blocks
    own: dict[str, Any] = {"blocks": length, "seed": manifest.takes[-1].seed}
    if isinstance(frames, int) and isinstance(fps, int | float):
        own = {"seconds": round(pixel_frames(length * frames) / fps, 2), "seed": manifest.takes[-1].seed}
    return {**settings, **own}


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _problem(content: Any) -> str:
    """Why `content` is not a valid manifest; empty if it is valid."""
    if not isinstance(content, dict) or set(content) != _KEYS:
        return "it has other keys"
    if type(content["schema"]) is not int or content["schema"] != SCHEMA:
        return f"its schema is {content['schema']!r}, expected {SCHEMA}"
    if not _is_count(content["blocks"], MOST_BLOCKS) or content["blocks"] == 0:
        return f"its number of blocks is {content['blocks']!r}"
    if not isinstance(content["settings"], dict) or not all(_is_setting(v) for v in content["settings"].values()):
        return "its settings are not plain values"
    if not isinstance(content["versions"], dict) or not all(_is_text(v) for v in content["versions"].values()):
        return "its versions are not texts"
    if not _is_hash(content["identity"]):
        return "its identity is not valid"
    takes = content["takes"]
    if not isinstance(takes, list) or not takes or not all(_is_take(take) for take in takes):
        return "its takes are damaged"
    if takes[0]["first_block"] != 0:
        return "its first take does not begin at block 0"
    unsealed = {name: value for name, value in content.items() if name != "seal"}
    return "" if content["seal"] == _seal(unsealed) else "it was changed since it was written"


def _is_take(take: Any) -> bool:
    return (
        isinstance(take, dict)
        and set(take) == {"first_block", "seed", "prompt", "words"}
        and _is_count(take["first_block"], MOST_BLOCKS)
        and _is_count(take["seed"], 2**64)
        and _is_hash(take["prompt"])
        and _is_text(take["words"])
    )


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


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
