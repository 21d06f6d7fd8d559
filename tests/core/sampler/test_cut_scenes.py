"""Cuts and flushes on the miniature: the new prompt's scene is there, and nothing of the old one is left in frame."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from packforcing_core import api
from packforcing_core.laboratory.evaluation.little_world.checker import check_video
from packforcing_core.render.parts import build_cache, build_compression
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.rollout import rollout
from packforcing_core.text.script import Change, Cue, Script
from packforcing_core.vae.streaming import to_frames

pytestmark = pytest.mark.integration

CHANGE = 6
"""The block at which the prompt changes: sink and recent frames are full, and three blocks are in the bank."""
BLOCK = 16
BEFORE = "a red circle at the top left bounces on a dark background"
AFTER = "a blue square at the bottom right bounces on a grey background"


@cache
def miniature() -> api.Models:
    return api.load_miniature(torch.float32)


def made(script: Script, blocks: int, known=()) -> list[BlockDone]:
    """The blocks of a rollout of seed 1000, decoded."""
    models = miniature()
    settings = api.Settings(seed=1000, seconds=10, width=128, height=64, policy="packforcing")
    recipe = settings.recipe(models.family, models.span)
    recipe = replace(recipe, geometry=replace(recipe.geometry, blocks=blocks))
    compression = build_compression(models.model, models.vae, models.high_res)
    found = {done.block: done for done in known}
    cache = build_cache(models.model, recipe)
    events = rollout(
        models.model, script, cache, recipe.noise(), recipe.denoising, blocks, found.get, compression, decoded_from=0
    )
    return [event for event in events if isinstance(event, BlockDone)]


@cache
def before() -> list[BlockDone]:
    return made(Script.of(context(BEFORE)), CHANGE + 1)[:CHANGE]


def context(prompt: str) -> torch.Tensor:
    return miniature().encode([prompt])[0]


def changed(change: Change, blocks: int) -> list[np.ndarray]:
    """The frames of that many blocks behind the change."""
    script = Script((Cue(0, context(BEFORE)), Cue(CHANGE, context(AFTER), change=change)))
    with torch.inference_mode():
        done = made(script, CHANGE + blocks, before())
    return [frame for block in done[CHANGE:] for frame in to_frames(block.video)]


def test_behind_a_cut_the_frame_is_the_new_scenes_at_once_and_it_is_right_within_two_blocks():
    frames = changed("cut", 4)
    background = [check_video(frames[n : n + 1], scene(AFTER)).background_right for n in range(BLOCK)]
    rest = frames[2 * BLOCK :]
    new, old = check_video(rest, scene(AFTER)), check_video(frames, scene(BEFORE))
    print(f"{100 * new.right:.0f}% of {len(rest)} frames right behind two blocks, {100 * old.right:.0f}% the old scene")
    assert background == [1] * BLOCK
    assert new.right >= 0.9  # What tests.benchmarks.changes counts as right.
    assert old.colours_right == 0


def test_behind_a_flush_the_new_background_comes_within_its_block_and_fills_the_next():
    frames = changed("flush", 2)
    first, second = (check_video(block, scene(AFTER)).background_right for block in (frames[:BLOCK], frames[BLOCK:]))
    print(f"{100 * first:.0f}% of the first block's frames, {100 * second:.0f}% of the second's")
    assert first > 0
    assert second == 1


def scene(prompt: str) -> str:
    """A prompt without the place, where the scene begins: what is checked begins later."""
    return prompt.replace(" at the bottom right", "").replace(" at the top left", "")
