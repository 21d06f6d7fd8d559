"""Renders without a name: one of another length, of what else decides its blocks, begins with what is finished."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from packforcing_core.folder.content import Content
from packforcing_core.folder.folder import Mode, RenderFolder, open_render
from packforcing_core.folder.listing import renders
from packforcing_core.folder.manifest import Manifest
from packforcing_core.folder.unnamed import open_unnamed
from packforcing_core.render.parts import build_compression
from packforcing_core.render.recording import recorded_events, wanted_manifest
from packforcing_core.sampler.denoising import StepDone
from packforcing_core.sampler.start import Start
from packforcing_core.text.script import Script
from tests.small import small_context, small_model
from tests.survivor import Small
from tests.vaes import TINY, random_vae


def opened(root: Path, small: Small, mode: Mode = "resume", start: torch.Tensor | None = None) -> RenderFolder:
    recipe = small.recipe()
    if start is not None:
        recipe = recipe.begun(Start(start), recipe.geometry.seconds)
    content = Content(Script.of(small_context(seed=small.prompt)), start=start)
    wanted = wanted_manifest(recipe, {"model": "small"}, content, torch.device("cpu"))
    return open_unnamed(root, "auto", mode, wanted, content, recipe.geometry.block_shape)


def rendered(root: Path, small: Small) -> tuple[list[torch.Tensor], list[int]]:
    """The latents of all blocks, and which of them were denoised."""
    folder, recipe, model = opened(root, small), small.recipe(), small_model()
    compression = build_compression(model, random_vae(TINY), None) if recipe.partitions.bank else None
    denoised = []
    with torch.inference_mode():
        for event in recorded_events(model, recipe, folder, compression):
            if isinstance(event, StepDone) and event.block not in denoised:
                denoised.append(event.block)
    return [folder.blocks.load(block).latents for block in range(small.blocks)], denoised


@pytest.mark.parametrize("policy", ["packforcing", "deep_forcing", "window", "rolling"])
def test_a_longer_render_begins_with_the_shorter_one_and_is_the_same(tmp_path, policy: str):
    rendered(tmp_path, Small(policy, blocks=3))
    longer, denoised = rendered(tmp_path, Small(policy, blocks=8))
    whole, _ = rendered(tmp_path / "elsewhere", Small(policy, blocks=8))
    difference = max((a - b).abs().max().item() for a, b in zip(longer, whole, strict=True))
    print(f"{policy}: denoised {denoised}, largest difference {difference:g}")
    assert difference == 0
    assert not {0, 1, 2} & set(denoised)
    assert len(list(tmp_path.glob("auto-*/manifest.json"))) == 2


def test_a_shorter_render_is_the_beginning_of_the_longer_one_which_stays(tmp_path):
    longer, _ = rendered(tmp_path, Small(blocks=8))
    shorter, denoised = rendered(tmp_path, Small(blocks=3))
    assert denoised == []
    assert all(torch.equal(a, b) for a, b in zip(longer, shorter, strict=False))
    assert opened(tmp_path, Small(blocks=8)).known_blocks == 8


def test_what_is_used_is_told_in_seconds_and_once(tmp_path):
    rendered(tmp_path, Small(blocks=3))
    first = opened(tmp_path, Small(blocks=8))
    assert any("the first 2.1 s were rendered before, as auto-" in note for note in first.notes)
    assert first.known_blocks == 3
    assert opened(tmp_path, Small(blocks=8)).notes == ()


def test_a_damaged_block_is_made_again_in_the_new_render_and_the_other_keeps_its_file(tmp_path):
    rendered(tmp_path, Small(blocks=3))
    (old,) = tmp_path.glob("auto-*-3")
    damaged = old / "blocks" / "000001-0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-40] + bytes(40))
    before = damaged.read_bytes()
    _, denoised = rendered(tmp_path, Small(blocks=4))
    assert denoised == [1, 3]
    assert damaged.read_bytes() == before


def test_a_render_whose_blocks_are_gone_keeps_no_other_one_from_opening(tmp_path):
    rendered(tmp_path, Small(blocks=3))
    (old,) = tmp_path.glob("auto-*-3")
    shutil.rmtree(old / "blocks")
    _, denoised = rendered(tmp_path, Small(blocks=5))
    assert denoised == [0, 1, 2, 3, 4]
    assert len(list(renders(tmp_path))) == 2


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"prompt": 2}, {"policy": "deep_forcing"}, {"mode": "new"}, {"start": True}], ids=str
)
def test_what_decides_the_blocks_makes_another_render(tmp_path, other: dict):
    rendered(tmp_path, Small(blocks=3))
    start = torch.ones(1, 16, 3, 4, 6) if "start" in other else None
    settings = {name: value for name, value in other.items() if name in ("seed", "prompt", "policy")}
    folder = opened(tmp_path, replace(Small(blocks=8), **settings), other.get("mode", "resume"), start)
    assert folder.known_blocks == 0
    assert folder.notes == ()


def test_another_start_of_the_same_length_is_another_render_and_no_refusal(tmp_path):
    one = opened(tmp_path, Small(), start=torch.zeros(1, 16, 3, 4, 6))
    other = opened(tmp_path, Small(), start=torch.ones(1, 16, 3, 4, 6))
    assert one.path != other.path


def test_a_render_that_was_retaken_under_its_name_makes_way_for_the_one_of_the_settings(tmp_path):
    """Its own settings would otherwise be refused for ever, with nothing that could be set back."""
    small = Small(blocks=4)
    rendered(tmp_path, small)
    name = opened(tmp_path, small).path.name
    other = replace(small, prompt=2)
    content = Content(Script.of(small_context(seed=other.prompt)))
    wanted = wanted_manifest(other.recipe(), {"model": "small"}, content, torch.device("cpu"))
    shape = other.recipe().geometry.block_shape
    open_render(tmp_path, name, "retake", wanted, content, shape, retake_block=2)
    again = opened(tmp_path, small)
    assert again.path.name == f"{name}.1"
    assert any(f"{name} was changed by a retake or an extension" in note for note in again.notes)
    assert opened(tmp_path, small).path == again.path, "the next run finds it"
    assert len(Manifest.read(tmp_path / name).takes) == 2, "the retake stays"
