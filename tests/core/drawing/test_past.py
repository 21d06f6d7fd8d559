from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from packforcing_core.cache.config import POLICY_PRESETS, PackForcing
from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.drawing.past import (
    BAR_HEIGHT,
    BAR_TOP,
    ENGLISH,
    HEIGHT,
    LETTER,
    WIDTH,
    Moment,
    block_states,
    draw_window,
    parts_in_view,
    selected_shares,
)
from packforcing_core.geometry import VideoGeometry
from packforcing_core.miniature.load import MEMORY
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.recipe.plan import plan_render
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.sampler.denoising import Denoising
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.sampler.start import Start

STEPS = Denoising(Schedule.warped((1000.0, 500.0), 5.0))
ROLLING = Denoising.of_family(next(family for family in FAMILIES.values() if family.rollout == "rolling"))


def recipe(preset: str, blocks: int = 120, frames_per_block: int = 4, denoising: Denoising = STEPS) -> Recipe:
    geometry = VideoGeometry(832, 480, 16.0, frames_per_block, blocks)
    return Recipe(geometry, POLICY_PRESETS[preset], denoising, 0)


def picture(made: Recipe, moment: Moment | None = None) -> ElementTree.Element:
    plan = plan_render(WAN_SIZES["1.3B"], made)
    return ElementTree.fromstring(draw_window(made, plan, moment))


def bars(svg: ElementTree.Element, top: float) -> list[ElementTree.Element]:
    return [rect for rect in svg.findall(".//{*}rect") if float(rect.get("y")) == top]


def texts(svg: ElementTree.Element) -> str:
    return " | ".join(text.text for text in svg.findall(".//{*}text"))


def test_the_papers_window_is_drawn_to_scale():
    svg = picture(recipe("PackForcing"))
    print(texts(svg))
    assert "27,872" in texts(svg)
    assert "{past}: 3.99 GB" in texts(svg)
    widths = [float(rect.get("width")) for rect in bars(svg, BAR_TOP)]
    assert widths == pytest.approx([WIDTH * t / 27_872 for t in (12_480, 2_912, 6_240, 6_240)], abs=0.01)


@pytest.mark.parametrize("preset", POLICY_PRESETS)
@pytest.mark.parametrize("frames_per_block", [1, 3, 4])
def test_every_memory_is_drawn_at_every_block_and_stays_inside(preset: str, frames_per_block: int):
    made = recipe(preset, blocks=45, frames_per_block=frames_per_block)
    most = plan_render(WAN_SIZES["1.3B"], made).attended_tokens
    for block in range(made.geometry.blocks):
        parts = parts_in_view(made.geometry, made.partitions, block)
        assert sum(parts.values()) <= most
        drawn = picture(made, Moment(block, {0: 0.5}))
        assert f"{{in_view}}: {sum(parts.values()):,} {{tokens}}" in texts(drawn)
        assert "{past}" not in texts(drawn), "that is planned for a full cache"
        for rect in drawn.findall(".//{*}rect"):
            assert float(rect.get("x")) + float(rect.get("width")) <= WIDTH + 0.1
            assert float(rect.get("y")) + float(rect.get("height")) <= HEIGHT
    seen = set(block_states(made.geometry, made.partitions, made.geometry.blocks - 1))
    print(preset, sorted(seen))
    assert "current" in seen


@pytest.mark.parametrize("preset", ["Sliding window (Self-Forcing)", "PackForcing", "Full history (CausVid)"])
def test_blocks_that_roll_together_are_all_current(preset: str):
    made = recipe(preset, blocks=30, frames_per_block=3, denoising=ROLLING)
    together = made.partitions.current_blocks
    plan = plan_render(WAN_SIZES["1.3B"], made)
    sums = [sum(parts_in_view(made.geometry, made.partitions, block).values()) for block in range(30)]
    states = block_states(made.geometry, made.partitions, 20)
    print(preset, plan.attended_tokens, max(sums), states)
    assert max(sums) == plan.attended_tokens - (
        9 * 1560 if preset == "Full history (CausVid)" else 0
    )  # its clip ends before
    assert together > 1
    assert states[20:] == ["current"] * made.partitions.current_blocks + ["ahead"] * (
        10 - made.partitions.current_blocks
    )


def test_what_a_block_sees_is_where_it_lies_in_the_video():
    made = recipe("PackForcing", blocks=12)
    states = block_states(made.geometry, made.partitions, 9)
    assert states == ["sink"] * 2 + ["mid"] * 6 + ["recent", "current"] + ["ahead"] * 2


def test_a_full_bank_forgets_the_oldest_and_a_window_everything_before_it():
    made = recipe("PackForcing", blocks=200)
    states = block_states(made.geometry, made.partitions, 199)
    assert states.count("mid") == 160
    assert states.index("mid") == 199 - 1 - 160
    window = recipe("Sliding window (Self-Forcing)", blocks=12, frames_per_block=3)
    assert block_states(window.geometry, window.partitions, 11).count("gone") == 5


def test_selected_blocks_are_drawn_by_their_share_of_the_layers():
    shares = selected_shares([(2, 5), (5,), (5, 7), (5,)])
    assert shares == {2: 0.25, 5: 1.0, 7: 0.25}
    svg = picture(recipe("PackForcing", blocks=12), Moment(9, shares))
    found = {r.find("{*}title").text: float(r.get("height")) for r in svg.findall(".//{*}rect")}
    heights = {title: height for title, height in found.items() if "of_layers" in title}
    assert heights == {
        "{block} 3: 25% {of_layers}": 5,
        "{block} 6: 100% {of_layers}": 20,
        "{block} 8: 25% {of_layers}": 5,
    }
    assert "{selected}: 3, 6, 8" in texts(svg)


KEPT = [
    ({}, "bfloat16", " (bf16)", "{ram}: "),
    ({"kv_int8": "all"}, "int8, bank bfloat16", " (int8)", "{ram}: "),
    ({"kv_int8": "all", "bank_storage": "vram_int8"}, "int8", " (int8)", "{bank} int8: "),
    ({"kv_int8": "all_int4", "bank_storage": "ram_int4"}, "int4", " (int4)", "{bank} int4: "),
    ({"bank_storage": "vram_int8"}, "bfloat16, bank int8", " (bf16)", "{bank} int8: "),
    ({"kv_int8": "sink+recent"}, "bfloat16, sink+recent int8", " (bf16/int8)", "{bank}: "),
    ({"kv_int8": "recent", "bank_storage": "ram_int8"}, "bfloat16, recent int8, bank int8", " GB", "{ram} int8: "),
]


@pytest.mark.parametrize(("knobs", "stored", "past", "bank"), KEPT)
def test_few_bits_are_named_and_the_line_is_not_too_long(knobs, stored, past, bank):
    made = replace(recipe("PackForcing"), policy=PackForcing(**knobs))
    plan = plan_render(WAN_SIZES["1.3B"], made)
    assert plan.stored == stored
    assert f"(latent frames), in {stored}" in plan.describe_memory()
    svg = picture(made)
    line = [text for text in svg.findall(".//{*}text") if float(text.get("y")) == 110]
    said = [text.text for text in line]
    print(said)
    assert len(said) == 2
    assert said[0].endswith(past)
    assert said[1].startswith(bank)
    assert LETTER * len("".join(said).format(**ENGLISH)) <= WIDTH - 4
    title = line[0].find("{*}title")
    assert (title.text if title is not None else "bf16") == stored.replace("bfloat", "bf")


def test_the_lengths_of_the_words_are_those_of_the_panel():
    words = json.loads((Path(__file__).parents[3] / "locales" / "en" / "main.json").read_text(encoding="utf-8"))
    assert {name: words["packforcing"][name] for name in ENGLISH} == ENGLISH


def test_an_hour_of_video_is_still_a_small_drawing():
    made = recipe("PackForcing", blocks=3600)
    svg = draw_window(made, plan_render(WAN_SIZES["1.3B"], made))
    print(f"{len(svg)} characters")
    assert len(svg) < 5_000
    assert re.search(r"3600 \{blocks\}", svg)


def test_seconds_of_a_start_that_the_video_does_not_show_are_told_apart():
    made = recipe("PackForcing", blocks=32)
    latents = torch.zeros(1, 16, 8, *made.geometry.block_shape[3:])
    continued = made.begun(Start(latents, left_out=True), 30.0)
    told = texts(picture(continued, Moment(1)))
    print(told)
    shown = continued.video_frames / 16
    assert f"{continued.geometry.seconds - shown:.1f} s {{given}} + {shown:.1f} s" in told
    assert "{given}" not in texts(picture(made))


def test_a_narrow_part_has_its_name_upright_in_it():
    """As on the demo: the compressed blocks take 14 of 300 units."""
    geometry = VideoGeometry(128, 64, 16.0, 4, 40)
    svg = picture(Recipe(geometry, MEMORY, STEPS, 0))
    (bar,) = (rect for rect in bars(svg, BAR_TOP) if rect.find("{*}title").text.startswith("{mid}"))
    (name,) = (text for text in svg.findall(".//{*}text") if text.text == "{mid}")
    left, width = float(bar.get("x")), float(bar.get("width"))
    print(f"{width:.1f} units, {name.attrib}")
    assert width < LETTER * len("mid")
    turned, x, y = re.fullmatch(r"rotate\((\S+) (\S+) (\S+)\)", name.get("transform")).groups()
    assert turned == "-90"
    assert abs(float(x) - (left + width / 2)) < 0.1
    assert BAR_TOP < float(y) < BAR_TOP + BAR_HEIGHT
