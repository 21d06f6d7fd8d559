"""The Chinese of what nodes say: it follows the English lines in the code, and every note and warning has one."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from packforcing_core.cache.config import PackForcing
from packforcing_core.checkpoint.families import DEFAULT_FAMILY, FAMILIES, choice_warnings
from packforcing_core.geometry import VideoGeometry
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.recipe.plan import plan_render
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.sampler.denoising import Denoising
from packforcing_core.source import adaptations, part_used

ROOT = Path(__file__).resolve().parents[1]
SAID = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["packforcing"]["said"]
CHINESE = re.compile("[\u4e00-\u9fff]")
BETWEEN = re.compile(r"\{n?\}|, | \| |: |; |\(|\)|\.(?: |$)|%|\bblocks?\b|(?<=last job) ")
"""Where the code puts a line together."""
NOT_ON_NODES = ("laboratory", "cli")


def templates(path: Path) -> Iterator[str]:
    """The strings of a Python file, with {} for each value in an f-string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.fixture(scope="module")
def code() -> list[str]:
    pages = [*(ROOT / "nodes").glob("*.py"), *(ROOT / "packforcing_core").rglob("*.py")]
    return [text for path in pages if not set(NOT_ON_NODES) & set(path.parts) for text in templates(path)]


def in_chinese(line: str, kind: str = "lines") -> str | None:
    """What words.js makes of an English line; None if it has no Chinese."""
    for english, chinese in SAID[kind].items():
        pattern = re.escape(english).replace(r"\{\}", "(.+?)").replace(r"\{n\}", r"([\d.,]+)")
        if found := re.fullmatch(pattern, line):
            return re.sub(r"\{(\d+)\}", lambda at: in_chinese(found[int(at[1])], "parts") or found[int(at[1])], chinese)
    return None


def test_every_note_and_warning_has_chinese(code: list[str]):
    told = {text.strip() for text in code if re.match(r"\n?(Note|Warning): .", text)}
    told -= {
        "Warning: {}",
        "Warning: {}, but this render may need {} more. It stops when the disk is full. Free disk "
        "space; the same render then resumes.",
    }  # Put together with other texts, which are tested below.
    print(len(told))
    assert len(told) > 15
    assert [text for text in sorted(told) if not in_chinese(text.replace("{}", "7"))] == []


def test_every_english_line_is_still_in_the_code(code: list[str]):
    page = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes" / "web").glob("*.js"))
    everything = "\n".join([*code, page.replace("${", "{")])
    gone = []
    for english in (*SAID["lines"], *SAID["parts"]):
        pieces = [piece.strip() for piece in BETWEEN.split(english)]
        gone += [(english, piece) for piece in pieces if len(piece) > 3 and piece not in everything]
    assert gone == []


def test_the_chinese_uses_every_value_of_the_english():
    for english, chinese in (*SAID["lines"].items(), *SAID["parts"].items()):
        places = {int(number) for number in re.findall(r"\{(\d+)\}", chinese)}
        count = len(re.findall(r"\{n?\}", english))
        assert places == set(range(1, count + 1)), english
        assert CHINESE.search(chinese), english


def lines_of_a_plan() -> Iterator[str]:
    family = FAMILIES[DEFAULT_FAMILY] if isinstance(DEFAULT_FAMILY, str) else DEFAULT_FAMILY
    geometry = VideoGeometry.from_seconds(30, width=832, height=480, fps=16.0, frames_per_block=family.frames_per_block)
    recipe = Recipe(geometry, PackForcing(), Denoising.of_family(family), 0)
    plan = plan_render(WAN_SIZES["1.3B"], recipe)
    yield recipe.describe_length(30)
    yield plan.describe(length=False)
    yield replace(plan, current_blocks=4).describe(length=False)
    yield from plan.describe_memory().splitlines()
    yield from adaptations(1080, 1920, 29.97, geometry, any_size=True)
    yield from adaptations(1000, 480, None, geometry, any_size=True)
    yield from adaptations(1664, 960, None, geometry, any_size=True)
    yield from adaptations(4000, 480, None, geometry, any_size=True)
    yield from part_used(1200, 30.0, geometry, 3.0)
    yield from part_used(1200, 30.0, geometry, None)
    other = replace(family, frames_per_block=1, rollout="rolling")
    yield from (f"Warning: {text}" for text in choice_warnings(replace(family, only_size=(128, 64)), other, (832, 480)))


PROGRESS = (
    "1 block of 4 finished before: reading them",
    "block 3/40 | 2.1 s of 29.8 s | 1:05 left | 2.31 s per block | KV cache 5.1 GB",
    "block 3/40 | 2.1 s of 29.8 s | reused | KV cache 5.1 GB",
    "render auto-1: no block reused, 4 of 4 sampled, 0.13 s per block, KV cache 4.7 MB",
    "render auto-1: 2 given, 3 blocks reused, 0 of 4 sampled, KV cache 4.7 MB",
    "Its pixels are 4:3, not square: it is stretched to 128 x 64.",
)
"""As `nodes/feedback.py` and the reader of videos put them together; the tests in ComfyUI see the same."""


def test_lines_that_are_put_together_have_chinese():
    for line in (*lines_of_a_plan(), *PROGRESS):
        chinese = in_chinese(line)
        print(line, chinese, sep="\n  ")
        assert chinese
        numbers = re.findall(r"\d+(?:[.,]\d+)*", line)
        assert set(numbers) <= set(re.findall(r"\d+(?:[.,]\d+)*", chinese)), "no figure is lost"
        assert not re.search("[a-z]{2,} [a-z]{2,} [a-z]{2,}", chinese), "the whole line"
