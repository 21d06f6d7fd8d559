"""The study as images: what is recalled; what stays right over time, a line for each row; a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...miniature.world import FPS
from ..evaluation.scientific import library
from .readings import CURVES, unpacked_pictures
from .recall import AWAY
from .rows import GROUPS, Row
from .tables import RECALL, RecallTables, Results

TITLES = {
    "right": "everything right",
    "colours_right": "right colours",
    "count_right": "right count",
    "identity_kept": "identity kept",
}
SMOOTHED = 5  # seconds that a point of a curve stands for
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (130, 130, 136)
GAP, LABEL = 6, 16


def draw_curves(results: Results, rows: Sequence[Row], reference: str, path: Path) -> None:
    """Means over all seeds, a row of panels for each group of rows, the reference in each."""
    figure_module = library("matplotlib.figure", "matplotlib", "Drawing plots")
    groups = [group for group in GROUPS if any(row.group == group for row in rows)]
    figure = figure_module.Figure(figsize=(4 * len(CURVES), 0.8 + 2.8 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(CURVES), squeeze=False, sharex=True, sharey=True)
    for group, line in zip(groups, panels, strict=True):
        for curve, panel in zip(CURVES, line, strict=True):
            for row in rows:
                if row.group == group or row.name == reference:
                    values = _smoothed(np.array([found["curves"][curve] for found in results[row.name]]).mean(0))
                    style = {"lw": 2.2, "color": "black"} if row.name == reference else {"lw": 1.2}
                    panel.plot(np.arange(1, len(values) + 1), values, label=row.name, **style)
            panel.set_title(f"{group}: {TITLES[curve]}", loc="left", fontsize=9)
            panel.grid(alpha=0.3)
            panel.set_ylim(-0.03, 1.03)
            panel.yaxis.set_major_formatter("{x:.0%}")
        line[0].legend(fontsize=7, loc="lower left")
    for panel in panels[-1]:
        panel.set_xlabel("seconds")
    figure.savefig(path, dpi=90)


def draw_recall(recall: RecallTables, path: Path) -> None:
    """What is recalled, a bar for each row with its interval, one panel for each time away."""
    figure_module = library("matplotlib.figure", "matplotlib", "Drawing plots")
    panels_of = recall.measures[RECALL[0].key]
    names = list(next(iter(panels_of.values())))
    figure = figure_module.Figure(figsize=(8, 0.9 + 0.26 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(AWAY), squeeze=False, sharey=True)[0]
    for (away, frames), panel in zip(AWAY.items(), panels, strict=True):
        found = [panels_of[away][name] for name in names]
        means = np.array([interval.mean for interval in found])
        spread = np.abs(np.array([[interval.low, interval.high] for interval in found]).T - means)
        colours = ["black" if name == recall.reference else "tab:blue" for name in names]
        panel.barh(names, means, xerr=spread, color=colours, error_kw={"lw": 1, "ecolor": "grey"})
        panel.set_title(f"recalled, {frames / FPS:.0f} s away", loc="left", fontsize=9)
        panel.set_xlim(0, 1.03)
        panel.xaxis.set_major_formatter("{x:.0%}")
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=90)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the last SMOOTHED values [T], of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTHED)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_sheet(results: Results, worlds: Sequence[str], path: Path) -> None:
    """A line for each row of the study; side by side the first seed of each world, spread over its time."""
    columns = [column for world in worlds if (column := _first_of(results, world)) is not None]
    strips = {name: [unpacked_pictures(row[at]["pictures"]) for at in columns] for name, row in results.items()}
    width, height = next(iter(strips.values()))[0].size
    size = (GAP + len(columns) * (width + GAP), LABEL + len(results) * (height + LABEL + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, at in enumerate(columns):
        case = next(iter(results.values()))[at]
        said = f"seed {case['seed']}: {case['prompt']}"
        pen.text((GAP + column * (width + GAP), 1), said, fill=FAINT, font_size=11)
    for line, (name, pictures) in enumerate(strips.items()):
        top = LABEL + line * (height + LABEL + GAP)
        pen.text((GAP, top), name, fill=INK, font_size=12)
        for column, strip in enumerate(pictures):
            sheet.paste(strip, (GAP + column * (width + GAP), top + LABEL))
    sheet.save(path, optimize=True)


def _first_of(results: Results, world: str) -> int | None:
    row = next(iter(results.values()))
    return next((at for at, found in enumerate(row) if found["world"] == world), None)
