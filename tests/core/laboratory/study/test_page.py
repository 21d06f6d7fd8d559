"""The page holds the tables and what they rest on; writing it again changes nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.study.drawing import draw_curves, draw_recall, draw_sheet
from packforcing_core.laboratory.study.page import BEGIN, END, Facts, as_json, as_markdown, facts_of, replace_part
from packforcing_core.laboratory.study.recall import AWAY
from packforcing_core.laboratory.study.rows import OTHERS, ZERO_SHOT
from packforcing_core.laboratory.study.tables import RecallTables, Results, Tables, build_recall_tables, build_tables
from tests.core.laboratory.study.planted import planted_answers, planted_row

ROWS = (*OTHERS[:2], ZERO_SHOT)
SETTINGS = {"weights": "0123456789abcdef", "seconds": 15.0}


def made(seeds: int = 4) -> tuple[Results, Tables, RecallTables, Facts]:
    results = {row.name: planted_row(seeds, [0.9, 0.2 + 0.1 * at]) for at, row in enumerate(ROWS)}
    tables = build_tables(results, "zero-shot", (5.0, 15.0))
    asked = {away: planted_answers(ROWS, seeds) for away in AWAY}
    facts = facts_of("packforcing study --quick", SETTINGS, [results, *asked.values()], ["trained"])
    return results, tables, build_recall_tables(asked, "zero-shot"), facts


def test_the_page_says_what_was_measured_and_how():
    _, tables, recall, facts = made()
    page = as_markdown(tables, recall, ROWS, facts)
    assert "`packforcing study --quick`" in page
    assert "weights 0123456789abcdef, seconds 15.0" in page
    assert "Videos: 4 seeds (0 to 3)" in page
    assert "0.14 hours" in page  # 12 films of 36 s, 24 answers of 3 s
    assert (
        "| row | recalled, 2 s away | recalled, 7 s away | back at all, 2 s away | back at all, 7 s away "
        "| right, if back, 2 s away | right, if back, 7 s away |" in page
    )
    assert "| window | 50 [" in page
    assert "Left out, because they need trained compressor weights: trained." in page
    assert "Fewer than 16 seeds" in page
    assert "Without" not in page
    assert "Without videos: deep forcing.\n\nWithout answers: deep forcing." in as_markdown(
        tables, recall, (*ROWS, OTHERS[4]), facts
    )
    assert "| row | 0 to 5 s | 5 to 15 s |" in page
    # All four seeds have the same value here, and then so have all resamples; of four that are 1 the interval is exact.
    assert "| window | 100 [40, 100] | 40 [40, 40] |" in page
    assert "| window | window | window_frames 20 | - |" in page
    assert "**-10" not in page  # Four seeds decide nothing, however alike they are.
    _, tables, recall, _ = made(16)
    page = as_markdown(tables, recall, ROWS, facts)
    assert "Fewer than 16 seeds" not in page
    assert "**-10 [-10, -10], p 0.0" in page


def test_a_page_may_have_films_or_answers_alone():
    _, tables, recall, facts = made()
    films, answers = as_markdown(tables, None, ROWS, facts), as_markdown(None, recall, ROWS, facts)
    assert "everything right" in films
    assert "recalled" not in films
    assert "everything right" not in answers
    assert "recalled, 2 s away" in answers
    assert f"Without videos: {', '.join(row.name for row in ROWS)}." in answers
    assert "curves.png" not in answers
    assert "windows" not in json.loads(as_json(None, recall, ROWS, facts))


def test_the_json_holds_the_same():
    _, tables, recall, facts = made()
    found = json.loads(as_json(tables, recall, ROWS, facts))
    assert found["recall"]["measures"]["recall"]["late"]["full"]["mean"] == 1
    assert found["recall"]["claims"]["soon"][0]["difference"]["mean"] == 1
    assert found["windows"]["right"]["full"][1]["mean"] == pytest.approx(0.3)
    assert found["claims"]["right"][0]["name"] == "full"
    assert found["claims"]["right"][0]["difference"]["mean"] == pytest.approx(-0.2)
    assert [row["name"] for row in found["rows"]] == ["full", "window", "zero-shot"]
    assert found["seeds"] == [0, 1, 2, 3]


def test_the_part_of_a_page_is_replaced(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"# Study\n\n{BEGIN}\nold\n{END}\n\nend\n", encoding="utf-8")
    for _ in range(2):
        replace_part(page, "new | table\n")
        assert page.read_text(encoding="utf-8") == f"# Study\n\n{BEGIN}\nnew | table\n{END}\n\nend\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(PackForcingError, match="needs one line"):
        replace_part(page, "new")
    assert page.read_text(encoding="utf-8") == "no marks"


def test_the_pictures_show_every_row(tmp_path):
    results, _, recall, _ = made()
    draw_recall(recall, tmp_path / "recall.png")
    bars = np.asarray(Image.open(tmp_path / "recall.png").convert("RGB"))
    drawn = (bars == (31, 119, 180)).all(-1)  # of the rows that are not the reference, which recalled nothing here
    halves = [int(drawn[:, :360].sum()), int(drawn[:, 360:].sum())]
    print(f"blue pixels in the two panels: {halves}")
    assert min(halves) > 1000
    draw_curves(results, ROWS, "zero-shot", tmp_path / "curves.png")
    draw_sheet(results, ("two", "return"), tmp_path / "sheet.png")
    assert Image.open(tmp_path / "curves.png").width > 600
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # Seeds 1 and 2 are the first of these worlds; their planted pictures are grey 10 and 20.
    grey = [(sheet == value).all(-1).sum() for value in (10, 20)]
    print(f"pixels of the two seeds' pictures: {grey}")
    assert grey == [3 * 6 * 64 * 128] * 2
