"""A hard cut on the miniature: two blocks later nothing of the old scene is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from packforcing_core import api
from packforcing_core.laboratory.evaluation.little_world.checker import check_video
from packforcing_core.video import read_frames

pytestmark = pytest.mark.integration

FIRST = 93
"""Frames before the block in which the second prompt begins: 6 blocks of 4 latent frames."""
BLOCK = 16
SCENES = [
    ("a red circle bounces on a dark background", "a blue square bounces on a teal background"),
    ("a green triangle bounces on a teal background", "a yellow circle bounces on a dark background"),
]


@pytest.fixture(scope="module")
def miniature() -> api.Models:
    return api.load_miniature(torch.float32)


def video(models: api.Models, prompt: str, seed: int, path: Path) -> list[np.ndarray]:
    size = {"width": 128, "height": 64, "seconds": 10.0, "policy": "packforcing"}
    for _ in api.render(models, api.Settings(prompt=prompt, seed=seed, **size), path):
        pass
    return list(read_frames(path))


def test_two_blocks_behind_a_cut_nothing_of_the_old_scene_is_left(miniature, tmp_path):
    reached = []
    for seed, (before, after) in zip((1000, 1001), SCENES, strict=True):
        frames = video(miniature, f"[0s] {before} [6s cut] {after}", seed, tmp_path / f"{seed}.mp4")
        rest = frames[FIRST + 2 * BLOCK :]
        new, old = check_video(rest, after), check_video(rest, before)
        shares = f"{100 * new.right:.0f}% right, background {100 * new.background_right:.0f}%"
        print(f"seed {seed}, {len(rest)} frames: {shares}")
        assert new.background_right == 1
        assert old.objects_right == 0
        reached.append(new.right >= 0.9)
    assert any(reached)
