"""What the nodes say: complete in English and Chinese, in step with the code; and widgets are only ever appended."""

from __future__ import annotations

import re

import pytest

from tests.comfyui.install import PACK
from tests.comfyui.node_texts import (
    LOCALES,
    WIDGET_ORDER,
    documented_parts,
    english,
    inputs_of,
    our_nodes,
    parts_of,
    read_json,
    widget_order,
)
from tests.comfyui.server import ComfyServer

CHINESE = re.compile("[\u4e00-\u9fff]")
REFRESH = "run `python -m tests.comfyui.node_texts`"
DOCS = PACK / "nodes" / "web" / "docs"
# Names that are the same in both languages.
SHARED_NAMES = {"CLIP", "VAE", "Latent"}


@pytest.fixture(scope="module")
def nodes(comfy: ComfyServer) -> dict:
    return our_nodes(comfy)


def texts(entry: dict) -> dict[str, dict]:
    parts = {f"inputs.{name}": part for name, part in entry["inputs"].items()}
    return parts | {f"outputs.{name}": part for name, part in entry["outputs"].items()}


def test_every_node_input_and_output_explains_itself(nodes: dict):
    lacking = []
    for node, info in nodes.items():
        tips = {name: options.get("tooltip") for name, _, options in inputs_of(info)}
        for name, kind, options in inputs_of(info):
            if kind.startswith("COMFY_DYNAMIC"):
                tips |= {f"{name}.{part} ({key})": o.get("tooltip") for key, part, o in parts_of(options)}
        tips |= {f"output {i}": tip for i, tip in enumerate(info["output_tooltips"] or [None])}
        tips["description"] = info["description"]
        lacking += [f"{node}: {name}" for name, tip in tips.items() if not tip or len(tip) < 12]
        lacking += [] if info.get("search_aliases") else [f"{node}: search aliases"]
    assert lacking == []


def test_the_english_locale_is_what_the_nodes_say(nodes: dict):
    assert read_json(LOCALES / "en" / "nodeDefs.json") == {name: english(info) for name, info in nodes.items()}, REFRESH


def test_every_text_has_a_chinese_one(nodes: dict):
    chinese = read_json(LOCALES / "zh" / "nodeDefs.json")
    lacking = sorted(set(nodes) ^ set(chinese))
    for node in set(nodes) & set(chinese):
        wanted, there = texts(english(nodes[node])), texts(chinese[node])
        # The front end looks a dotted name up with its dots replaced.
        wanted |= {f"inputs.{menu}_{part}": {} for menu, part in documented_parts(nodes[node])}
        lacking += [f"{node}.{part}" for part in set(wanted) ^ set(there)]
        for part in set(wanted) & set(there):
            name, tooltip = there[part]["name"], there[part].get("tooltip", "")
            if not (CHINESE.search(name) or name in SHARED_NAMES) or not CHINESE.search(tooltip):
                lacking.append(f"{node}.{part}: {name} {tooltip}")
        if not (CHINESE.search(chinese[node]["display_name"]) and CHINESE.search(chinese[node]["description"])):
            lacking.append(f"{node}: name or description")
    print(f"{sum(len(texts(entry)) for entry in chinese.values())} Chinese entries for {len(chinese)} nodes")
    assert lacking == []


def test_both_languages_have_the_same_words_and_none_that_the_front_end_reads_as_code():
    assert read_json(LOCALES / "en" / "main.json").keys() == read_json(LOCALES / "zh" / "main.json").keys()
    english_words, chinese_words = (read_json(LOCALES / lang / "main.json")["packforcing"] for lang in ("en", "zh"))
    del chinese_words["said"]  # By the English lines themselves.
    assert english_words.keys() == chinese_words.keys()
    for language in ("en", "zh"):
        text = (LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")
        strings = re.findall(r': "((?:[^"\\]|\\.)*)"', text)
        assert [string for string in strings if re.search(r"[{}@|]", string)] == []


def test_widgets_and_outputs_are_only_ever_appended(nodes: dict):
    """A saved workflow holds widget values and links by position."""
    recorded = read_json(WIDGET_ORDER)
    broken = [f"{node} is not recorded: {REFRESH}" for node in set(nodes) - set(recorded)]
    for node, order in recorded.items():
        now = widget_order(nodes[node]) if node in nodes else {}
        for part, names in order.items():
            if now.get(part, [])[: len(names)] != names:
                broken.append(f"{node} {part}: was {names}, is {now.get(part)}")
            elif len(now[part]) > len(names):
                broken.append(f"{node} {part} has grown: {REFRESH}")
    assert broken == []


def test_every_node_has_a_help_page_in_both_languages_that_names_its_inputs(nodes: dict):
    lacking = []
    for node, info in nodes.items():
        for page in (DOCS / f"{node}.md", DOCS / node / "zh.md"):
            text = page.read_text(encoding="utf-8") if page.exists() else ""
            names = [name for name, _, _ in inputs_of(info) if not re.fullmatch(r"video_[2-6]", name)]
            names += sorted({part for _, part in documented_parts(info)})
            lacking += [f"{page.relative_to(DOCS)}: {name}" for name in names if f"`{name}`" not in text]
    assert lacking == []
    assert {page.stem for page in DOCS.glob("*.md")} == set(nodes)


def test_help_pages_have_no_tables():
    """The front end's side panel is about 250 pixels wide, and cuts them off."""
    pages = list(DOCS.glob("**/*.md"))
    assert len(pages) == 20
    assert [page.name for page in pages if "|---" in page.read_text(encoding="utf-8")] == []
