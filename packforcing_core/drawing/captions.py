"""The captions of stacked videos, in Latin, Chinese and Japanese letters on every machine: the font is in `fonts/`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import PackForcingError

FONT = Path(__file__).parent / "fonts" / "NotoSansCJKsc-subset.otf"
HEIGHT, MARGIN = 32, 6
LARGEST, SMALLEST = 19.0, 9.0
"""Font sizes in pixels: as large as all lines allow."""
NO_LETTER = "\uffff"
"""No font has this one: it is drawn as the empty box of a letter that is missing."""


def caption_images(captions: str, widths: Sequence[int]) -> list[np.ndarray] | None:
    """Each line white on black, uint8 [32, W, 3] for each width W; None for an empty text.

    Raises PackForcingError unless there are as many lines as widths.
    """
    lines = captions.rstrip().splitlines()
    if not lines:
        return None
    if len(lines) != len(widths):
        raise PackForcingError(
            f"Got {len(lines)} lines of captions for {len(widths)} videos; expected one line per video."
        )
    rooms = [width - 2 * MARGIN for width in widths]
    longest = max(_font(LARGEST).getlength(line) / room for line, room in zip(lines, rooms, strict=True))
    font = _font(max(SMALLEST, LARGEST / max(1.0, longest)))
    return [_drawn(line, width, font) for line, width in zip(lines, widths, strict=True)]


def missing_letters(captions: str) -> str:
    """The letters of `captions` that the font does not have, each once."""
    font = _font(LARGEST)
    none = bytes(font.getmask(NO_LETTER))
    return "".join(sorted({c for c in captions if not c.isspace() and bytes(font.getmask(c)) == none}))


def _drawn(line: str, width: int, font: ImageFont.FreeTypeFont) -> np.ndarray:
    image = Image.new("RGB", (width, HEIGHT))
    ImageDraw.Draw(image).text((MARGIN, HEIGHT / 2), line, anchor="lm", font=font)
    return np.asarray(image)


@lru_cache(maxsize=16)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)
