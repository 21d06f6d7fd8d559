"""The image of the README: the study's first question in motion, as two policies answer it side by side.

    python -m packforcing_core.laboratory.study.readme_image FILE.webp

Until the object is due back the frames are the question's own, drawn by the toy world's program; then each policy
samples its own. The question is chosen by rule, not by its answers: the first of the test seeds, 7 seconds away.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...miniature.world import FPS
from ...vae.streaming import to_frames
from .answers import continued, frames_of, given_by
from .recall import AWAY, MADE_BLOCKS, Question
from .rows import Row, chosen_rows, study_rows
from .subject import load_miniature

ROWS = {"window": "Sliding window of 20 latent frames", "trained": "PackForcing, trained compressor"}
FIRST_TEST_SEED = 1000
SEEN_S = 3
"""Seconds that are shown before the object has left."""
SCALE, EVERY = 3, 2
MARGIN, BAR = 8, 26
PAPER, INK, FAINT = (24, 24, 27), (244, 244, 245), (161, 161, 170)
MOST_BYTES = 1_500_000


def answers(question: Question) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The end of the given video, and what each of `ROWS` samples after it: frames uint8 [T, 64, 128, 3]."""
    subject = load_miniature("fp32")
    given = given_by(subject, question)
    rows: Sequence[Row] = chosen_rows(study_rows(subject.trained), list(ROWS))
    before = np.concatenate([to_frames(video) for video in given.videos])[-AWAY[question.away] - SEEN_S * FPS :]
    return before, {row.name: frames_of(continued(subject, row, question, given, MADE_BLOCKS)) for row in rows}


def drawn(before: np.ndarray, sampled: dict[str, np.ndarray], away: int) -> Iterator[Image.Image]:
    """The images, `EVERY` frames apart; the object is out of sight in the last `away` frames of `before`."""
    font = ImageFont.load_default(15)
    height, width = (SCALE * size for size in before.shape[1:3])
    length = len(before) + min(map(len, sampled.values()))
    for frame in range(0, length, EVERY):
        image = Image.new("RGB", (len(ROWS) * (width + MARGIN) + MARGIN, height + 2 * BAR + MARGIN), PAPER)
        draw = ImageDraw.Draw(image)
        for place, (name, title) in enumerate(ROWS.items()):
            left = MARGIN + place * (width + MARGIN)
            shown = before[frame] if frame < len(before) else sampled[name][frame - len(before)]
            draw.text((left, 5), title, INK, font)
            image.paste(Image.fromarray(shown).resize((width, height), Image.Resampling.BICUBIC), (left, BAR))
        draw.text((MARGIN, BAR + height + 4), _said(frame, len(before), away), FAINT, font)
        yield image


def _said(frame: int, before: int, away: int) -> str:
    if frame < before - away:
        return "Given to both: the object leaves."
    if frame < before:
        return f"Given to both: nothing in sight for {(frame - before + away) / FPS:.0f} s."
    return "Sampled: the prompt says that a shape returns, and not its colour."


def save(images: Sequence[Image.Image], path: Path) -> None:
    """An animated WebP that is shown in real time, at the best quality at which it has less than MOST_BYTES."""
    settings = {"save_all": True, "append_images": images[1:], "duration": 1000 * EVERY / FPS, "loop": 0, "method": 6}
    for quality in (85, 75, 60, 45):
        images[0].save(path, "WEBP", quality=quality, **settings)
        if path.stat().st_size < MOST_BYTES:
            return


def main(path: Path) -> None:
    question = Question(FIRST_TEST_SEED, "late")
    before, sampled = answers(question)
    save(list(drawn(before, sampled, AWAY[question.away])), path)
    print(f"{path}: seed {question.seed}, prompt: {question.prompt}, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
