"""The toy world that the miniature was trained on: its size, its colours and shapes, and the words of its prompts."""

from __future__ import annotations

from collections.abc import Mapping

HEIGHT, WIDTH = 64, 128
"""Pixels. A compressed block of such an image has 1 x 2 places, so that tokens can be told apart by where they are."""
FPS = 16

# Hues far apart: between neighbours, blurred rims would read as a third colour.
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
"""Places of an image: halves of its height, thirds of its width."""

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
"""The whole vocabulary. The order is part of the text encoder: new words go to the end."""
