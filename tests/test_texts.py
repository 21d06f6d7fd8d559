"""What users read: the field's words, and a Chinese text that follows its English one."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from packforcing_core.cli import main as command_line
from tests.translations import english, recorded

ROOT = Path(__file__).resolve().parents[1]
CODE = (*(ROOT / "nodes").rglob("*.py"), *(ROOT / "packforcing_core").rglob("*.py"))
PAGES = (
    *sorted(ROOT.glob("*.md")),
    *sorted(page for room in ("nodes", "packforcing_core", "workflows") for page in (ROOT / room).rglob("[A-Z]*.md")),
    *sorted((ROOT / "workflows" / "api" / "notes").glob("*.md")),
    *sorted((ROOT / "locales" / "en").glob("*.json")),
)
LISTED = json.loads(Path(__file__).with_name("retired.json").read_text(encoding="utf-8"))
RETIRED, RETIRED_CHINESE = LISTED["english"] | LISTED["passages"], LISTED["chinese"]
# What a page or a help text does not say, but a message or a docstring may.
RETIRED_IN_PAGES = RETIRED | LISTED["pages"]


def prose(path: Path) -> str:
    """A page without its code: names of files and options may hold a word that sentences do not use."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL)


def found_in(text: str, where: str, retired: dict[str, str]) -> list[str]:
    hits = [(match, better) for pattern, better in retired.items() for match in re.finditer(pattern, text)]
    return [f"{where}: ...{text[max(0, m.start() - 30) : m.end() + 20]!r} -> {better}" for m, better in hits]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_use_the_fields_words(path):
    assert found_in(prose(path), path.name, RETIRED_IN_PAGES) == []


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring of a module and of every string in it that is a sentence, values left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else " {} " for part in node.values]
            text = "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        if " " in text.strip():
            yield node.lineno, re.sub(r"`[^`\n]*`", " ", text)


@pytest.mark.parametrize(
    "room", sorted({path.parent for path in CODE}), ids=lambda room: room.relative_to(ROOT).as_posix()
)
def test_docstrings_and_messages_use_the_fields_words(room):
    found = []
    for path in sorted(room.glob("*.py")):
        for line, text in texts_of(path):
            found += found_in(text, f"{path.relative_to(ROOT).as_posix()}:{line}", RETIRED)
    assert found == []


def helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every sentence of a command's help, its subcommands included."""
    yield from filter(None, (parser.description, parser.epilog))
    for group in parser._action_groups:
        yield from filter(None, (group.title, group.description))
    for action in parser._actions:
        yield action.help or ""
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from helps(child)


def test_the_command_lines_help_uses_the_fields_words():
    text = "\n".join(helps(command_line.build_parser()))
    assert len(text) > 3000
    assert found_in(text, "help", RETIRED_IN_PAGES) == []


CHINESE = (
    ROOT / "locales" / "zh" / "README.md",
    *(ROOT / "locales" / "zh").glob("*.json"),
    *(ROOT / "nodes" / "web" / "docs").glob("*/zh.md"),
)


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_chinese_texts_use_the_communitys_words(path):
    text = path.read_text(encoding="utf-8")
    text = json.dumps(json.loads(text), ensure_ascii=False) if path.suffix == ".json" else text
    assert found_in(text, path.name, RETIRED_CHINESE) == []


def test_no_english_text_has_moved_on_from_its_chinese_one():
    """Mend the Chinese text, then `python -m tests.translations NAME` records that it follows again."""
    now, then = english(), recorded()
    assert [name for name in now if then.get(name) != now[name]] == []
