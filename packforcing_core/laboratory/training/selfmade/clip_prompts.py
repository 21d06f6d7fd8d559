"""The prompts of the self-generated clips."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from ....errors import PackForcingError
from ....miniature.world import BACKGROUNDS, COLOURS, SHAPES
from .base import require_prompts

SHIPPED = Path(__file__).with_name("prompts.json")
"""Varied in subject, motion and camera; in a third of them an object leaves the image, is occluded, or comes back."""


def shipped_prompts() -> list[str]:
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


def miniature_prompts() -> list[str]:
    """Returns prompts in the miniature's vocabulary: objects whose colour the prompt does not name, objects that are
    named, and pans.
    """
    kept = [f"a shape leaves and returns on a {ground} background" for ground in BACKGROUNDS]
    named = [
        f"a {colour} {shape} {does} on a {ground} background"
        for colour, shape, ground, does in product(COLOURS, SHAPES, BACKGROUNDS, ("bounces", "leaves and returns"))
    ]
    pans = [f"the view pans over bars on a {ground} background" for ground in BACKGROUNDS]
    # Without a colour in the prompt only recall gives it: these are as frequent as the named ones.
    return [*kept * (len(named) // len(kept)), *named, *pans]


def read_prompts(path: Path) -> list[str]:
    """Reads one prompt per line, or a JSON list of prompts. Raises PackForcingError if the file cannot be read, is not
    such a list, or has fewer than two prompts.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackForcingError(f"The prompts in {path} cannot be read: {error}.") from error
    if path.suffix.lower() == ".json":
        try:
            lines = json.loads(text)
        except ValueError as error:
            raise PackForcingError(f"{path} is not JSON ({error}); expected a list of prompts.") from error
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise PackForcingError(f"{path} is not a list of prompts; expected a JSON list of texts.")
    else:
        lines = text.splitlines()
    return require_prompts(lines, str(path))
