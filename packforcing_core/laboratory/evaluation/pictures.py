"""Draws evaluations: plots over time, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .film import FilmEvaluation
from .scientific import library

CELL = 208  # maximum width and height in pixels of an image on the sheet
GAP, LABEL = 6, 14
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (130, 130, 136)
RIGHT, WRONG = (40, 150, 80), (205, 50, 45)


def draw_plots(films: Sequence[FilmEvaluation], path: Path) -> None:
    """Plots colour drift, contrast, motion and the checker's rate over time, one line per video."""
    figure_module = library("matplotlib.figure", "matplotlib", "Drawing plots")
    worlds = any(film.world for film in films)
    figure = figure_module.Figure(figsize=(10, 8 if worlds else 6), layout="constrained")
    panels = figure.subplots(4 if worlds else 3, 1, sharex=True)
    titles = (
        "colour: distance from the first second (CIE76)",
        "contrast (standard deviation of L)",
        "motion of the fastest 5% (pixels per frame)",
        "checker: share of the last second's frames that are right",
    )
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title, loc="left", fontsize=9)
        panel.grid(alpha=0.3)
    for film in films:
        seen, window = film.seen, max(1, round(film.seen.fps))
        times = np.arange(len(seen.lab)) / seen.fps
        panels[0].plot(times, np.linalg.norm(seen.lab - seen.lab[:window].mean(0), axis=1), lw=1, label=film.name)
        panels[1].plot(times, seen.contrast, lw=1)
        panels[2].plot(times[1:], _running(seen.flow[1:] * seen.side, window), lw=1)
        if worlds:
            right = np.array([verdict.right for verdict in film.world.verdicts], float) if film.world else np.zeros(0)
            panels[3].plot(times[: len(right)], _running(right, window), lw=1)
    if worlds:
        panels[3].set_ylim(-0.05, 1.05)
        panels[3].yaxis.set_major_formatter("{x:.0%}")
    panels[-1].set_xlabel("seconds")
    panels[0].legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)


def draw_sheet(films: Sequence[FilmEvaluation], path: Path) -> None:
    """Draws one row of images per video, labelled with their times. Where the checker applies, a frame around each
    image shows its verdict.
    """
    sizes = [_fitted(film.pictures[0][1]) for film in films]
    columns = max(len(film.pictures) for film in films)
    width = GAP + columns * (max(width for width, _ in sizes) + GAP)
    height = GAP + sum(height + 3 * LABEL + GAP for _, height in sizes)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for film, size in zip(films, sizes, strict=True):
        pen.text((GAP, top), _title(film), fill=INK, font_size=12)
        _draw_row(sheet, pen, film, size, top + LABEL + 2)
        top += size[1] + 3 * LABEL + GAP
    sheet.save(path)


def _draw_row(sheet: Image.Image, pen: ImageDraw.ImageDraw, film: FilmEvaluation, size: tuple[int, int], top: int):
    for column, (number, picture) in enumerate(film.pictures):
        left = GAP + column * (size[0] + GAP)
        # Nearest for enlarging, so that the toy world's pixels stay visible.
        grown = Image.Resampling.NEAREST if size[0] > picture.shape[1] else Image.Resampling.BICUBIC
        sheet.paste(Image.fromarray(picture).resize(size, grown), (left, top))
        said, colour = f"{number / film.seen.fps:.1f} s", FAINT
        if film.world:
            verdict = film.world.verdicts[number]
            colour = RIGHT if verdict.right else WRONG
            pen.rectangle((left - 2, top - 2, left + size[0] + 1, top + size[1] + 1), outline=colour, width=2)
            said += "" if verdict.right else f": {verdict.reasons[0].text}"
        pen.text((left, top + size[1] + 2), _shortened(said, pen, size[0]), fill=colour, font_size=10)


def _title(film: FilmEvaluation) -> str:
    return f"{film.name}: {film.prompt}" if film.prompt else film.name


def _shortened(text: str, pen: ImageDraw.ImageDraw, width: int) -> str:
    while len(text) > 1 and pen.textlength(text, font_size=10) > width:
        text = text[:-1]
    return text


def _fitted(picture: np.ndarray) -> tuple[int, int]:
    height, width = picture.shape[:2]
    scale = CELL / max(height, width)
    return round(width * scale), round(height * scale)


def _running(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of the last `window` values [T]; of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / np.maximum(1, ends - starts)
