"""The study's results as Markdown and JSON, and as a generated part of a README."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from ... import __version__
from ...errors import PackForcingError
from ...miniature.world import FPS
from ..evaluation.statistics import Comparison
from .cases import MEMORY_WORLDS
from .recall import AWAY
from .rows import PLANNED, Row
from .tables import LEVEL, MEASURES, RECALL, Measure, RecallTables, Results, Tables

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
RECALL_PICTURE, CURVES_PICTURE, SHEET_PICTURE = "recall.png", "curves.png", "sheet.png"


@dataclass(frozen=True)
class Facts:
    """What is needed to repeat the study: the command, the folder's settings, and what was left out."""

    command: str
    settings: Mapping[str, object]
    left_out: tuple[str, ...]
    hours: float
    """Core hours of all videos and answers together."""
    versions: str
    date: str


def facts_of(
    command: str, settings: Mapping[str, object], results: Iterable[Results], left_out: Sequence[str]
) -> Facts:
    spent = [
        found["render_seconds"] + found["reading_seconds"] for part in results for row in part.values() for found in row
    ]
    versions = (
        f"packforcing {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    date = datetime.now(timezone.utc).date().isoformat()
    return Facts(command, settings, tuple(left_out), sum(spent) / 3600, versions, date)


def as_json(tables: Tables | None, recall: RecallTables | None, rows: Sequence[Row], facts: Facts) -> str:
    found = {**vars(facts), "rows": [row.as_dict() for row in rows], **(tables.as_dict() if tables else {})}
    return json.dumps({**found, "recall": recall and recall.as_dict()}, indent=1) + "\n"


def as_markdown(tables: Tables | None, recall: RecallTables | None, rows: Sequence[Row], facts: Facts) -> str:
    """The tables with what they rest on, and the images that lie beside the page; None where there are no videos, or
    no answers."""
    parts = [*_told(facts), *_without(rows, tables, recall)]
    if recall:
        parts += [*_recall_tables(recall), f"![what is recalled]({RECALL_PICTURE})"]
    if tables:
        parts += [*_told_of_films(tables), *_claim_tables(tables), *_window_tables(tables)]
    parts.append(_row_table(rows))
    if tables:
        parts.append(f"![what stays right over time]({CURVES_PICTURE})\n\n![one line per row]({SHEET_PICTURE})")
    return "\n\n".join(parts) + "\n"


def replace_part(page: Path, part: str) -> None:
    """Replaces the text between the page's two marks with `part`. Raises PackForcingError unless there is exactly one
    pair.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in after:
        raise PackForcingError(
            f"{page} needs one line {BEGIN} and, after it, one line {END}; add them where the tables belong."
        )
    page.write_text(f"{before}{BEGIN}\n{part.strip()}\n{END}{after}", encoding="utf-8")


def _told(facts: Facts) -> Iterator[str]:
    told = ", ".join(f"{name} {value}" for name, value in facts.settings.items())
    yield f"`{facts.command}`, {facts.date}: {told}; {facts.versions}."
    yield (
        f"{facts.hours:.2g} hours of one core for all videos and answers. Means over seeds with {LEVEL:.0%} "
        "intervals: exact for questions, bootstrap for videos (resampled within each world). Rates are in percent."
    )
    if facts.left_out:
        yield f"Left out, because they need trained compressor weights: {', '.join(facts.left_out)}."


def _told_of_films(tables: Tables) -> Iterator[str]:
    yield f"Videos: {len(tables.seeds)} seeds ({_span(tables.seeds)}), the same for all rows."
    if len(tables.seeds) < 16:
        yield "**Fewer than 16 seeds: this shows that the study runs, but it decides nothing.**"


def _without(rows: Sequence[Row], tables: Tables | None, recall: RecallTables | None) -> Iterator[str]:
    filmed = tables.windows["right"] if tables else ()
    answered = next(iter(recall.measures["recall"].values())) if recall else ()
    for kind, found in (("videos", filmed), ("answers", answered)):
        names = [row.name for row in rows if row.name not in found]
        if names:
            yield f"Without {kind}: {', '.join(names)}."


def _span(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _recall_tables(recall: RecallTables) -> Iterator[str]:
    yield "### Questions: how often the returning object is recalled"
    heads = [f"{measure.title}, {frames / FPS:.0f} s away" for measure in RECALL for frames in AWAY.values()]
    columns = [(measure, recall.measures[measure.key][away]) for measure in RECALL for away in AWAY]
    names = list(columns[0][1])
    yield _table(
        ["row", *heads],
        [[name, *(measure.cell(intervals[name]) for measure, intervals in columns)] for name in names],
    )
    yield f"{len(recall.seeds)} questions ({_span(recall.seeds)}) of each kind, the same for all rows."
    if any(recall.claims.values()):
        yield _table(
            [f"row minus `{recall.reference}`", *(f"{frames / FPS:.0f} s away" for frames in AWAY.values())],
            [
                [found[0].name, *(_difference(RECALL[0], each) for each in found)]
                for found in zip(*(recall.claims[away] for away in AWAY), strict=True)
            ],
        )
        yield _corrected(recall.claims)


def _claim_tables(tables: Tables) -> Iterator[str]:
    last = f"{tables.moments[-1]:g} s"
    yield f"### Each row minus `{tables.reference}`, last interval before {last}"
    yield from _differences(tables.claims)
    if tables.memory:
        worlds = " and ".join(MEMORY_WORLDS)
        count = len(tables.memory_seeds)
        yield f"### The worlds that need recall ({worlds}; {count} seeds), last interval before {last}"
        yield _table(
            ["row", *(measure.title for measure in MEASURES)],
            [
                [name, *(measure.cell(tables.memory[measure.key][name]) for measure in MEASURES)]
                for name in tables.memory["right"]
            ],
        )
        yield from _differences(tables.memory_claims)


def _differences(claims: Mapping[str, Sequence[Comparison]]) -> Iterator[str]:
    measures = [measure for measure in MEASURES if measure.key in claims]
    if not any(claims.values()):
        return
    rows = []
    for at, first in enumerate(claims[measures[0].key]):
        rows.append([first.name, *(_difference(measure, claims[measure.key][at]) for measure in measures)])
    yield _table(["row", *(measure.title for measure in measures)], rows)
    yield _corrected(claims)


def _corrected(claims: Mapping[str, Sequence[Comparison]]) -> str:
    every = [one for found in claims.values() for one in found]
    names = [name for name in PLANNED if any(one.name == name for one in every)]
    planned = sum(one.name in PLANNED for one in every)
    told = f"the {planned} with {', '.join(names)}, which were written down before the run, for each other"
    rest = f"the {len(every) - planned} others for each other"
    parts = ", and ".join(part for part, count in ((told, planned), (rest, len(every) - planned)) if count)
    return (
        f"Differences seed by seed, corrected for their number, {parts}: intervals by Bonferroni, p by sign flips and "
        f"Holm. Bold: the interval excludes zero and p is below {1 - every[0].difference.level:.2g}."
    )


def _difference(measure: Measure, found: Comparison) -> str:
    text = f"{measure.cell(found.difference)}, p {found.p:.2g}"
    return f"**{text}**" if found.decided and found.p < 1 - found.difference.level else text


def _window_tables(tables: Tables) -> Iterator[str]:
    begins = [0.0, *tables.moments[:-1]]
    heads = [f"{begin:g} to {end:g} s" for begin, end in zip(begins, tables.moments, strict=True)]
    for measure in MEASURES:
        yield f"### {measure.title}"
        found = tables.windows[measure.key]
        yield _table(["row", *heads], [[name, *map(measure.cell, intervals)] for name, intervals in found.items()])


def _row_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        default = type(row.policy)()
        knobs = {name: value for name, value in vars(row.policy).items() if value != getattr(default, name)}
        told = ", ".join(f"{name} {value}" for name, value in knobs.items()) or "defaults"
        lines.append([row.name, row.policy.name, told, row.branches or "-"])
    return "### The rows\n\n" + _table(["row", "policy", "knobs", "compressor"], lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
