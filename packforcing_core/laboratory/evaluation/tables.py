"""Formats evaluations as a Markdown table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from .film import FilmEvaluation
from .measures import DRIFT_AT
from .models import WINDOW_SECONDS
from .vbench_scores import WEIGHTS

Rows = Iterator[tuple[str, Callable[[FilmEvaluation], str | None]]]


def markdown_table(films: Sequence[FilmEvaluation], notes: Sequence[str] = ()) -> str:
    """Returns a table with one column per video and one row for each number that any video has. Notes on what could not
    be measured follow it.
    """
    lines = [_line(["", *(film.name for film in films)]), _line(["---", *("---:" for _ in films)])]
    for name, tell in _rows():
        cells = [tell(film) for film in films]
        if any(cell is not None for cell in cells):
            lines.append(_line([name, *(cell or "-" for cell in cells)]))
    said = [*dict.fromkeys([*notes, *(note for film in films for note in film.notes)])]
    return "\n".join([*lines, *(f"\n{note}" for note in said)]) + "\n"


def as_json(films: Sequence[FilmEvaluation], notes: Sequence[str] = ()) -> str:
    return json.dumps({"films": [film.as_dict() for film in films], "notes": list(notes)}, indent=2)


def _rows() -> Rows:
    yield "length", lambda film: f"{film.measures.seconds:.1f} s"
    yield "colour drift, first to last second (CIE76)", lambda film: f"{film.measures.colour_drift:.2f}"
    yield "largest colour drift of a second", lambda film: f"{film.measures.worst_colour_drift:.2f}"
    for at in DRIFT_AT:
        yield f"colour drift after {at} s", _colour_drift(at)
    yield "contrast drift", lambda film: f"{film.measures.contrast_drift:+.1%}"
    yield "flicker (CIE76)", lambda film: f"{film.measures.flicker:.3f}"
    yield "motion, pixels per frame", lambda film: f"{film.measures.motion:.2f}"
    yield "dynamic degree", lambda film: f"{film.measures.dynamic_degree:.1%}"
    yield "frozen", lambda film: f"{film.measures.frozen:.1%}"
    yield "jumps", lambda film: str(len(film.measures.jumps))
    yield "consistency of the colours' spread", lambda film: f"{film.measures.consistency:.4f}"
    yield from _model_rows()
    for dimension in WEIGHTS:
        yield f"VBench {dimension.replace('_', ' ')}", _vbench(dimension)
    yield from _world_rows()


def _model_rows() -> Rows:
    yield "CLIP score", lambda film: _number(film.models.clip_score if film.models else None, ".2f")
    yield f"CLIP score of each {WINDOW_SECONDS:g} s", _clip_windows
    yield "CLIP consistency", lambda film: _number(film.models.clip_consistency if film.models else None, ".4f")
    yield "DINO consistency", lambda film: _number(film.models.dino_consistency if film.models else None, ".4f")
    yield "ImageNet consistency", lambda film: _number(film.imagenet.consistency if film.imagenet else None, ".4f")
    for at in DRIFT_AT:
        yield f"ImageNet drift after {at} s", _imagenet_drift(at)


def _world_rows() -> Rows:
    names = {
        "right": "frames with everything right",
        "objects_right": "right things",
        "colours_right": "right colours",
        "count_right": "right count",
        "identity_kept": "identity kept",
        "background_right": "right background",
    }
    for key, name in names.items():
        yield f"checker: {name}", _world_rate(key)
    yield (
        "checker: speed, pixels per frame",
        lambda film: _number(film.world.motion.speed if film.world else None, ".2f"),
    )
    yield "checker: frozen", lambda film: _number(film.world.motion.frozen if film.world else None, ".1%")
    yield "checker: jumps", lambda film: str(len(film.world.motion.jumps)) if film.world else None


def _world_rate(key: str) -> Callable[[FilmEvaluation], str | None]:
    return lambda film: f"{film.world.rates()[key]:.1%}" if film.world else None


def _colour_drift(at: int) -> Callable[[FilmEvaluation], str | None]:
    return lambda film: _number(film.measures.colour_drift_at.get(at), ".2f")


def _imagenet_drift(at: int) -> Callable[[FilmEvaluation], str | None]:
    return lambda film: _number(film.imagenet.drift.get(at) if film.imagenet else None, ".2f")


def _vbench(dimension: str) -> Callable[[FilmEvaluation], str | None]:
    return lambda film: _number(film.vbench.get(dimension), ".4f")


def _clip_windows(film: FilmEvaluation) -> str | None:
    windows = film.models.clip_windows if film.models else ()
    return ", ".join(f"{score:.1f}" for score in windows) or None


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
