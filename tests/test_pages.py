"""The pages: their figures are the planner's, their links lead somewhere, their Python runs."""

from __future__ import annotations

import json
import lzma
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence

from packforcing_core.cache.config import (
    DOCUMENTED_PRESETS,
    DeepForcing,
    Full,
    MemRoPE,
    PackForcing,
    RollingSink,
    SinkWindow,
    TetherCache,
    Window,
)
from packforcing_core.checkpoint.families import DEFAULT_FAMILY, FAMILIES
from packforcing_core.geometry import GB, VideoGeometry
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.recipe.plan import RenderPlan, plan_render
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.sampler.denoising import Denoising
from packforcing_core.vae import decode_bytes
from packforcing_core.vae.config import VAEConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [p for p in sorted(ROOT.rglob("*.md")) if not {".venv", ".pytest_cache"} & set(p.relative_to(ROOT).parts)]
INT8 = PackForcing(kv_int8="all", bank_storage="ram_int8")
SMALLER = PackForcing(3, 3, 8, kv_int8="all", bank_storage="ram_int8")
ROWS = {"16 GB and up": (PackForcing(), "bf16"), "12 GB": (INT8, "fp8"), "8 GB": (SMALLER, "fp8")}

POLICIES = {
    "PackForcing": ("PackForcing, trained compressor", "PackForcing, zero-shot"),
    "Sliding window (Self-Forcing)": ("Sliding window",),
    "Sink + window (LongLive)": ("Sink + window (LongLive)",),
    **{name: (name,) for name in ("Deep Forcing", "TetherCache", "MemRoPE", "Rolling Sink")},
}

RECALLED = {
    "trained": "PackForcing, trained compressor",
    "zero-shot": "PackForcing, zero-shot",
    "window": "Sliding window",
    "sink+window": "Sink + window (LongLive)",
    "deep forcing": "Deep Forcing",
    **{name: name for name in ("TetherCache", "MemRoPE", "Rolling Sink")},
}


def plan(policy, frames_per_block: int = 3, vram: float = 16, seconds: float = 120) -> RenderPlan:
    """What `packforcing plan --vram` says for a card with so many GB."""
    geometry = VideoGeometry.from_seconds(seconds, width=832, height=480, fps=16.0, frames_per_block=frames_per_block)
    recipe = Recipe(geometry, policy, Denoising.of_family(DEFAULT_FAMILY), 0)
    sizes = 480, 832, geometry.frames_per_push
    decoder = decode_bytes.vae_bytes(VAEConfig(), *sizes, torch.bfloat16, vram=int(vram * GB))
    return plan_render(WAN_SIZES["1.3B"], recipe, torch.bfloat16, decoder)


def cells(first: str) -> list[str]:
    """The cells of the README's table row that begins with `first`."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|.*$", README, re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_readmes_moving_image_is_a_question_in_real_time():
    """Three seconds before the object leaves, seven without it, and two blocks of a second."""
    (path,) = re.findall(r"\((\S+\.webp)\)", README)
    with Image.open(ROOT / path) as moving:
        shown = []
        for frame in ImageSequence.Iterator(moving):
            frame.load()
            shown.append(frame.info["duration"])
    assert sum(shown) == 12_000
    assert (ROOT / path).stat().st_size < 1.5e6


def test_the_recall_in_the_readme_is_that_of_the_stored_answers():
    folder = ROOT / "packforcing_core" / "laboratory" / "study"
    recalled = {}
    for archive in ("questions-16-2026-11-28.xz", "questions-64-2026-11-28.xz"):  # Where both have a row, the larger.
        found = json.loads(lzma.decompress((folder / archive).read_bytes()))["results"]
        for row in {answer["row"] for answer in found}:
            recalled[row] = [
                f"{sum(a['recall'] for a in own):.0f} of {len(own)}"
                for away in ("soon", "late")
                if (own := [answer for answer in found if (answer["row"], answer["away"]) == (row, away)])
            ]
    told = {row: cells(title)[4:6] for row, title in RECALLED.items()}
    print(told)
    assert told == {row: recalled[row] for row in RECALLED}
    assert f"PackForcing recalled {told['trained'][1].split()[0]}, the window none" in README
    both = sum(int(count.split()[0]) for count in told["trained"])
    assert f"the trained compressor {both} of 128" in README
    late = f"{int(told['trained'][1].split()[0]) / 64:.0%}"
    helped = [(ROOT / "nodes" / "web" / "docs" / f"PackForcing{node}.md") for node in ("KVCache", "ModelLoader")]
    assert [page.name for page in helped if late not in page.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("card", ROWS)
def test_the_readmes_table_is_the_planners(card, monkeypatch):
    monkeypatch.setattr(decode_bytes, "HELD_BY_CALLS", {})  # The README's figures hold from Python 3.11 on.
    (policy, weights), vram = ROWS[card], float(card.split()[0])
    planned = plan(policy, vram=vram)
    peak = planned.peak_bytes - (planned.weights_bytes // 2 if weights == "fp8" else 0)
    told = [f"{value / GB:.1f} GB" for value in (peak, planned.host_bytes, planned.disk_bytes)]
    print(card, told)
    assert cells(card)[3:] == told
    assert f"weights in {weights}" in cells(card)[2] or cells(card)[2].startswith("also")
    chinese = (ROOT / "locales" / "zh" / "README.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(told)} |" in chinese
    assert peak < 0.9 * GB * vram


CACHE_ROWS = {
    "packforcing": (PackForcing(), 3),
    "packforcing, blocks of 4": (PackForcing(), 4),
    "packforcing, sink 3, recent 3, top-k 8": (PackForcing(3, 3, 8), 3),
    "window of 21": (Window(21), 3),
    "sink 3 and window, 12 frames": (SinkWindow(12, 3), 3),
    **{policy.name: (policy, 3) for policy in (DeepForcing(), TetherCache(), MemRoPE(), RollingSink())},
}


def told_sizes(policy, frames_per_block: int, parts: str) -> tuple[str, str, str, str]:
    """Past, whole cache, peak and bank in system RAM, as the page of the cache rounds them."""
    bits = {"none": "", "all": "_int8", "all_int4": "_int4"}[parts]
    bank = {"bank_storage": f"ram{bits}"} if isinstance(policy, PackForcing) else {}
    made = plan(replace(policy, kv_int8=parts, **bank), frames_per_block)
    sizes = [value / GB for value in (made.cache_bytes, made.buffer_bytes, made.peak_bytes, made.host_bytes)]
    return f"{sizes[0]:.2f}", f"{sizes[1]:.2f}", f"{sizes[2]:.1f}", f"{sizes[3]:.1f}" if bank else ""


@pytest.mark.parametrize("name", CACHE_ROWS)
def test_the_caches_tables_are_the_planners(name, monkeypatch):
    """In full precision and 8 bits; in 8 and 4 bits, where the page has that row too."""
    monkeypatch.setattr(decode_bytes, "HELD_BY_CALLS", {})
    page = (ROOT / "packforcing_core" / "cache" / "README.md").read_text(encoding="utf-8")
    section = page.split("\n## Parts in 8 bits\n")[1].split("\n## ")[0]
    rows = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", section, re.MULTILINE)
    full, eight, four = (told_sizes(*CACHE_ROWS[name], parts) for parts in ("none", "all", "all_int4"))
    print(name, full, eight, four)
    pairs = [pair for at in (0, 2, 3) for pair in (eight[at], four[at])]
    assert [[cell.strip() for cell in row.split("|")] for row in rows] == [[*full[:3], *eight[:3]], pairs][: len(rows)]
    assert rows


NOTE = ROOT / "workflows" / "api" / "notes" / "packforcing_wan_low_memory.md"


def test_the_low_memory_templates_note_is_the_planners(monkeypatch):
    monkeypatch.setattr(decode_bytes, "HELD_BY_CALLS", {})
    note = NOTE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*) \| (\S+ GB) \| (\S+ GB) \|$", note, re.MULTILINE)
    made = [plan(policy, vram=12, seconds=30) for policy in (Window(21), PackForcing(), INT8, SMALLER)]
    told = [(f"{one.buffer_bytes / GB:.1f} GB", f"{one.peak_bytes / GB:.1f} GB") for one in made]
    print(told)
    assert [row[1:] for row in rows] == told
    assert f"RAM in int8 ({made[2].host_bytes / GB:.1f} GB)" in " ".join(note.split())
    template = json.loads(NOTE.parents[1].joinpath(f"{NOTE.stem}.json").read_text(encoding="utf-8"))
    assert [node["inputs"]["seconds"] for node in template.values() if "seconds" in node["inputs"]] == [30.0]


@pytest.mark.parametrize("preset", POLICIES)
def test_the_readmes_policies_are_the_planners(preset):
    planned = plan(DOCUMENTED_PRESETS[preset])
    told = [f"{planned.attended_tokens:,}", f"{planned.buffer_bytes / GB:.1f} GB"]
    print(preset, told)
    assert all(cells(name)[2:4] == told for name in POLICIES[preset])
    assert not planned.host_bytes or f"another {planned.host_bytes / GB:.1f} GB in system RAM" in README


def test_what_grows_with_the_length_is_the_banks_keys_and_ends_at_bank_blocks():
    lengths = {seconds: plan(PackForcing(), seconds=seconds) for seconds in (60, 120, 240, 480)}
    keys = {seconds: made.bank_bytes - made.host_bytes for seconds, made in lengths.items()}
    print(keys)
    # All else that the cache holds in VRAM is as large at any length.
    assert len({made.buffer_bytes - keys[seconds] for seconds, made in lengths.items()}) == 1
    assert keys[60] < keys[120] < keys[240] == keys[480]
    texts = f"({keys[480] / 160 / 1e6:.1f} MB per block at these sizes)", f"({keys[480] / 1e6:.0f} MB for 160 blocks)"
    page = (ROOT / "nodes" / "web" / "docs" / "PackForcingKVCache.md").read_text(encoding="utf-8")
    assert [text for text in texts if text not in page] == []


def test_how_much_is_compressed_and_how_long_two_minutes_are():
    for frames, text in ((3, "compressed 26x"), (4, "34x with the paper's blocks of 4")):
        geometry = VideoGeometry.from_seconds(120, width=832, height=480, fps=16.0, frames_per_block=frames)
        ratio = frames * geometry.tokens_per_frame / geometry.compressed_tokens
        print(f"blocks of {frames}: {ratio:.1f}")
        assert f"{ratio:.0f}x" in text
        assert text in README
    two_minutes = plan(PackForcing())
    assert f"120 s become {two_minutes.seconds:.2f} s ({two_minutes.pixel_frames:,} frames)" in README
    weights = two_minutes.weights_bytes
    assert f"model {weights / GB:.1f}, VAE" in README
    assert f"1.3B; {2 * weights / GB:.1f} GB in fp32" in README
    assert plan(Full()).buffer_bytes > 20 * two_minutes.buffer_bytes


NOTES = sorted((ROOT / "workflows" / "api" / "notes").glob("*.md"))


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note.stem)
def test_the_note_in_a_workflow_is_the_one_in_its_file(note: Path):
    graph = json.loads((ROOT / "workflows" / f"{note.stem}.json").read_text(encoding="utf-8"))
    (shown,) = [node["widgets_values"] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    assert shown == [note.read_text(encoding="utf-8")]


def test_the_note_on_deep_forcing_says_how_many_frames_are_in_view_and_why():
    note = (ROOT / "workflows" / "api" / "notes" / "packforcing_demo_deep_forcing.md").read_text(encoding="utf-8")
    policy = DeepForcing()
    frames = plan(policy, frames_per_block=4).window_frames
    print(frames)
    text = " ".join(note.split())
    assert f"At most {frames:g} latent frames in view: they come in whole blocks of 4" in text
    assert f"`window_frames` ({policy.window_frames})" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_the_readme_is_at_most_two_screens():
    assert len(README.splitlines()) <= 160


def test_the_python_of_the_command_lines_page_runs(tmp_path):
    page = (ROOT / "packforcing_core" / "cli" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    environment, command = {**os.environ, "PYTHONPATH": str(ROOT)}, [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "circle.mp4").exists()


def test_every_family_is_in_the_checkpoints_page():
    page = (ROOT / "packforcing_core" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    rows = [f"| {family.title} | `{family.name}` | {family.sampling} |" for family in FAMILIES.values()]
    assert [row for row in rows if row not in page] == []
