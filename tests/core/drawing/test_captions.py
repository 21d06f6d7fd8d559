"""Captions can be read in the languages that the pack's users write, on a machine with no fonts of its own."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.drawing.captions import HEIGHT, MARGIN, caption_images, missing_letters
from packforcing_core.errors import PackForcingError

TEXTS = {
    "english": "Sliding window",
    "simplified": "\u6ed1\u52a8\u7a97\u53e3\uff1a\u538b\u7f29\u7684\u8bb0\u5fc6",
    "traditional": "\u6df1\u5c64\u8a18\u61b6\u9ad4\u8207\u58d3\u7e2e",
    "japanese": "\u30b9\u30e9\u30a4\u30c7\u30a3\u30f3\u30b0\u7a93\u306e\u8a18\u61b6\u3001\u304d\u304a\u304f",
    "accents": "D\xe9cal\xe9 gr\xf6\xdfer",
    "russian": "\u041f\u0430\u043c\u044f\u0442\u044c",
}
"""As escapes: source files are plain ASCII."""


def ink(caption: str, width: int = 400) -> np.ndarray:
    images = caption_images(caption, [width])
    assert images is not None
    assert (images[0].shape, images[0].dtype) == ((HEIGHT, width, 3), np.uint8)
    return images[0]


@pytest.mark.parametrize("language", TEXTS)
def test_every_letter_is_drawn(language: str):
    text = TEXTS[language]
    assert missing_letters(text) == ""
    drawn = {letter: ink(letter).tobytes() for letter in text if not letter.isspace()}
    assert len(set(drawn.values())) == len(drawn), "no two letters are the same box"
    assert all(any(pixels) for pixels in drawn.values())


def test_letters_that_the_font_lacks_are_named_once():
    assert missing_letters("\uae30\uc5b5 \uae30 memory \u8bb0\u5fc6") == "\uae30\uc5b5"


def test_a_long_caption_is_drawn_smaller_and_not_cut():
    short, long = ink("Sliding", 128), ink("Sliding window", 128)
    for image in (short, long):
        assert not image[:, -MARGIN:].any(), "free at the right edge"
        assert image[:, MARGIN : 2 * MARGIN].any(), "begins at the left"
    tall = [int(np.flatnonzero(image.any(axis=(1, 2))).size) for image in (short, long)]
    print("rows with ink", tall)
    assert tall[1] < tall[0]


def test_an_empty_text_gives_no_captions_and_other_numbers_of_lines_are_refused():
    assert caption_images(" \n", [64, 64]) is None
    with pytest.raises(PackForcingError, match="2 lines of captions for 3 videos"):
        caption_images("a\nb", [64, 64, 64])
