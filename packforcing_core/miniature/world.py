"""The toy world of the miniature: its image size, colours and shapes, and the words of its prompts."""

from __future__ import annotations

from collections.abc import Mapping

HEIGHT, WIDTH = 64, 128
"""Pixels. A compressed block of such an image has 1 x 2 cells, so tokens can be told apart by position."""
FPS = 16

# Hues far apart: with closer ones, blurred edges between two colours would look like a third.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (224, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 80, 235),
    "yellow": (245, 215, 50),
    "white": (240, 240, 240),
}
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "dark": (24, 24, 32),
    "grey": (112, 112, 118),
    "purple": (80, 40, 104),
    "teal": (16, 92, 96),
}
SHAPES = ("circle", "square", "triangle")

ROWS = ("top", "bottom")
COLUMNS = ("left", "middle", "right")
"""Positions in an image: halves of its height, thirds of its width."""

WORDS = (
    *("a", "and", "on", "background", "the", "view", "pans", "over", "bars", "shape"),
    *("bounces", "bounce", "leaves", "returns"),
    *COLOURS,
    *SHAPES,
    *BACKGROUNDS,
    "at",
    *ROWS,
    *COLUMNS,
)
"""The whole vocabulary. Its order is part of the text encoder, so new words go to the end."""
