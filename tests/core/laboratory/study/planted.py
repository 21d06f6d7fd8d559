"""Results of a study that nobody has run, with means that are known."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from packforcing_core.laboratory.study.cases import case_of
from packforcing_core.laboratory.study.readings import CURVES, PICTURES
from packforcing_core.laboratory.study.rows import Row
from packforcing_core.laboratory.study.tables import MEASURES

SPREAD = 0.1  # how far the seeds' values lie from their mean, up or down


def planted(seed: int, windows: list[float], spread: float = SPREAD) -> dict:
    """A result whose every measure is `windows`, plus or minus `spread`: by turns of four seeds the mean is exact."""
    off = spread if seed % 8 < 4 else -spread
    strip = io.BytesIO()
    Image.fromarray(np.full((64, 128 * PICTURES, 3), 10 * seed, np.uint8)).save(strip, "PNG")
    return {
        **vars(case_of(seed)),
        "render_seconds": 30.0,
        "reading_seconds": 6.0,
        "windows": [{measure.key: value + off for measure in MEASURES} for value in windows],
        "curves": {curve: [value + off for value in windows for _ in range(5)] for curve in CURVES},
        "pictures": base64.b64encode(strip.getvalue()).decode("ascii"),
    }


def planted_row(seeds: int, windows: list[float], spread: float = SPREAD) -> list[dict]:
    return [planted(seed, windows, spread) for seed in range(seeds)]


def planted_answers(rows: Sequence[Row], seeds: int) -> dict[str, list[dict]]:
    """The first row recalls everything, the last nothing, each other one every second thing; all show something."""
    recall = {rows[0].name: (1.0, 1.0), rows[-1].name: (0.0, 0.0)}
    spent = {"render_seconds": 3.0, "reading_seconds": 0.0}
    return {
        row.name: [
            {"seed": seed, **spent, "recall": recall.get(row.name, (0.0, 1.0))[seed % 2], "back": 1.0}
            for seed in range(seeds)
        ]
        for row in rows
    }
