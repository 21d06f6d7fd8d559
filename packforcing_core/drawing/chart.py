"""The telemetry of a render as one image: time and memory per block, drift, and which past blocks were attended to.

Lines are dictionaries as in telemetry.jsonl. From `{"event": "block"}` it reads block, seconds, gpu_mb or rss_mb, and
selected (per layer, the selected blocks); from `{"event": "film"}` block, colour (mean red, green, blue) and contrast
(standard deviation of brightness), all 0..255. The newest line of a block counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..geometry import block_count
from .past import selected_shares

WIDTH = 960
LEFT, RIGHT, TITLE = 64, 16, 30
CHART, MAP, GAP = 110, 300, 34
PAPER, INK, GRID = (24, 24, 27), (228, 228, 231), (63, 63, 70)
LINES = {
    "time": (214, 200, 75),
    "memory": (79, 140, 201),
    "red": (235, 95, 95),
    "green": (90, 190, 110),
    "blue": (95, 145, 240),
    "contrast": (228, 228, 231),
}
LOOKED_AT = (255, 160, 70)


@dataclass(frozen=True)
class Chart:
    """One diagram over the blocks: named series of (block, value)."""

    title: str
    series: Mapping[str, Sequence[tuple[int, float]]]
    low: float
    high: float


def telemetry_picture(lines: Iterable[Mapping[str, Any]], title: str = "") -> Image.Image:
    """An RGB image, 960 pixels wide."""
    made, written = _newest(lines)
    blocks = max([*made, *written, 0]) + 1
    charts = [_time_chart(made), _memory_chart(made), _drift_chart(written)]
    height = TITLE + len(charts) * (CHART + GAP) + GAP + MAP + GAP
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT, TITLE / 2), title or block_count(blocks), INK, _font(15), anchor="lm")
    top = TITLE + GAP
    for chart in charts:
        _draw_chart(draw, chart, top, blocks)
        top += CHART + GAP
    _draw_map(picture, {block: _shares(line) for block, line in made.items()}, top, blocks)
    return picture


def _newest(lines: Iterable[Mapping[str, Any]]) -> tuple[dict[int, Mapping], dict[int, Mapping]]:
    found: dict[str, dict[int, Mapping]] = {"block": {}, "film": {}}
    for line in lines:
        block = line.get("block")
        if line.get("event") in found and isinstance(block, int) and block >= 0:
            found[line["event"]][block] = line
    return dict(sorted(found["block"].items())), dict(sorted(found["film"].items()))


def _values(lines: Mapping[int, Mapping], key: str, scale: float = 1.0) -> list[tuple[int, float]]:
    return [(block, line[key] * scale) for block, line in lines.items() if isinstance(line.get(key), int | float)]


def _time_chart(made: Mapping[int, Mapping]) -> Chart:
    points = _values(made, "seconds")
    values = [value for _, value in points] or [0.0]
    middle = median(values)
    # The first block waits for the weights; clipped, so that it does not flatten the rest of the chart.
    return Chart(f"seconds per block (median {middle:.2f})", {"time": points}, 0, min(max(values), 3 * middle) * 1.15)


def _memory_chart(made: Mapping[int, Mapping]) -> Chart:
    on_gpu = any("gpu_mb" in line for line in made.values())
    points = _values(made, "gpu_mb" if on_gpu else "rss_mb", 1e-3)
    highest = max((value for _, value in points), default=0.0)
    where = "the GPU" if on_gpu else "this process"
    return Chart(f"memory of {where}, GB (highest {highest:.2f})", {"memory": points}, 0, highest * 1.15)


def _drift_chart(written: Mapping[int, Mapping]) -> Chart:
    colours = {block: line["colour"] for block, line in written.items() if _is_colour(line.get("colour"))}
    series = {
        name: [(block, colour[channel] - colours[min(colours)][channel]) for block, colour in colours.items()]
        for channel, name in enumerate(("red", "green", "blue"))
    }
    contrast = _values(written, "contrast")
    series["contrast"] = [(block, value - contrast[0][1]) for block, value in contrast]
    reach = max((abs(value) for points in series.values() for _, value in points), default=0.0)
    return Chart(
        f"drift from the first block, in 0..255 (largest {reach:.1f})", series, -max(reach, 1.0), max(reach, 1.0)
    )


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value)


def _shares(line: Mapping[str, Any]) -> dict[int, float]:
    chosen = line.get("selected")
    layers = [layer for layer in chosen if isinstance(layer, list)] if isinstance(chosen, list) else []
    return selected_shares([[b for b in layer if isinstance(b, int) and b >= 0] for layer in layers])


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _draw_frame(draw: ImageDraw.ImageDraw, title: str, top: int, height: int, blocks: int) -> None:
    right, bottom = WIDTH - RIGHT, top + height
    draw.rectangle((LEFT, top, right, bottom), outline=GRID)
    draw.text((LEFT, top - 10), title, INK, _font(13), anchor="lm")
    draw.text((LEFT, bottom + 9), "1", INK, _font(11), anchor="lm")
    draw.text((right, bottom + 9), f"block {blocks}", INK, _font(11), anchor="rm")


def _draw_chart(draw: ImageDraw.ImageDraw, chart: Chart, top: int, blocks: int) -> None:
    _draw_frame(draw, chart.title, top, CHART, blocks)
    span = (chart.high - chart.low) or 1.0
    for value in (chart.low, (chart.low + chart.high) / 2, chart.high):
        y = top + CHART * (1 - (value - chart.low) / span)
        draw.line((LEFT, y, WIDTH - RIGHT, y), GRID)
        draw.text((LEFT - 6, y), f"{value:.3g}", INK, _font(11), anchor="rm")
    for number, (name, points) in enumerate(chart.series.items()):
        placed = [
            (_x(block, blocks), top + CHART * (1 - min(1.0, max(0.0, (value - chart.low) / span))))
            for block, value in points
        ]
        for x, y in placed if len(placed) < 3 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), LINES[name])
        draw.line(placed, LINES[name], 2)
        if len(chart.series) > 1:
            draw.text((WIDTH - RIGHT - 260 + 66 * number, top - 10), name, LINES[name], _font(12), anchor="lm")


def _x(block: int, blocks: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (block + 0.5) / blocks


def _draw_map(picture: Image.Image, selected: Mapping[int, Mapping[int, float]], top: int, blocks: int) -> None:
    draw = ImageDraw.Draw(picture)
    some = any(selected.values())
    title = "selected past blocks (vertical) of each block (horizontal); brighter: by more layers"
    none = "selected past blocks: this policy selects none"
    _draw_frame(draw, title if some else none, top, MAP, blocks)
    draw.text((LEFT - 6, top + MAP), "1", INK, _font(11), anchor="rm")
    draw.text((LEFT - 6, top), str(blocks), INK, _font(11), anchor="rm")
    for x, y, width, height, share in _cells(selected, top, blocks):
        colour = tuple(round(p + (c - p) * share) for p, c in zip(PAPER, LOOKED_AT, strict=True))
        draw.rectangle((int(x), int(y), ceil(x + width) - 1, ceil(y + height) - 1), colour)


def _cells(
    selected: Mapping[int, Mapping[int, float]], top: int, blocks: int
) -> Iterator[tuple[float, float, float, float, float]]:
    """(x, y, width, height, share) of each selection, in ascending order of share, so that the strongest is on top."""
    width, height = (WIDTH - LEFT - RIGHT) / blocks, MAP / blocks
    looks = [(share, block, past) for block, shares in selected.items() for past, share in shares.items()]
    for share, block, past in sorted(looks):
        if past < blocks:
            yield LEFT + block * width, top + MAP - (past + 1) * height, width, height, share


def as_image(picture: Image.Image) -> np.ndarray:
    """float32 [1, H, W, 3] in 0..1."""
    return np.asarray(picture, dtype=np.float32)[None] / 255
