"""Measure videos: drift, flicker, motion, consistency, and whether toy world videos show what the prompt says."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import PackForcingError
from ..evaluation.film import evaluate_film
from ..evaluation.imagenet import INSTALLING, ImageNet, available
from ..evaluation.models import MODEL_TYPES, Models
from ..evaluation.pictures import draw_plots, draw_sheet
from ..evaluation.tables import as_json, markdown_table
from ..evaluation.vbench_scores import available_dimensions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="videos (.mp4), also ones that are still growing")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="the prompt of the videos: given once for all of them, or once per video in their order",
    )
    parser.add_argument(
        "--models", metavar="FOLDER", help=f"a folder with CLIP or DINO models in transformers' format ({_kinds()})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="also write evaluation.md, evaluation.json, plots.png and sheet.png there",
    )


def run(options: argparse.Namespace) -> int:
    prompts = _prompts(options)
    models = Models.load(options.models) if options.models else None
    dimensions, unmeasured = available_dimensions()
    notes = [*unmeasured]
    if models is None:
        notes.append("CLIP and DINO were not measured: no --models.")
    imagenet = ImageNet() if available() else None
    if imagenet is None:
        notes.append(f"The ImageNet consistency was not measured: {INSTALLING}")
    films = [
        evaluate_film(file, prompt, models, dimensions, imagenet)
        for file, prompt in zip(options.files, prompts, strict=True)
    ]
    print(as_json(films, notes) if options.json else markdown_table(films, notes))
    if options.output:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.md").write_text(markdown_table(films, notes), encoding="utf-8")
        (folder / "evaluation.json").write_text(as_json(films, notes), encoding="utf-8")
        draw_plots(films, folder / "plots.png")
        draw_sheet(films, folder / "sheet.png")
    return 0


def _prompts(options: argparse.Namespace) -> list[str | None]:
    count = len(options.files)
    if len(options.prompt) <= 1:
        return (options.prompt or [None]) * count
    if len(options.prompt) != count:
        raise PackForcingError(
            f"Got {len(options.prompt)} prompts for {count} videos; expected one for all, or one for each."
        )
    return options.prompt


def _kinds() -> str:
    return ", ".join(MODEL_TYPES)
