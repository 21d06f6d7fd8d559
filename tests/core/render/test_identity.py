"""What decides a render is in its manifest: a change of any of it is another render, named as the user knows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from packforcing_core.cache.config import SinkWindow
from packforcing_core.cache.partitions import Partitions
from packforcing_core.folder.content import Content
from packforcing_core.folder.fingerprint import fingerprint
from packforcing_core.folder.manifest import difference
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.recording import wanted_manifest
from packforcing_core.render.writing import written_events
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.sampler.start import Start
from packforcing_core.text.script import Script

SCHEDULE = Schedule((1000.0, 500.0), (1.0, 0.5))
RECIPE = Recipe(VideoGeometry(48, 32, 16.0, 3, 8), SinkWindow(12, 3), Denoising(SCHEDULE), seed=7)
CLIP = torch.zeros(1, 16, 6, 4, 6)


def denoised(**changes) -> Recipe:
    return replace(RECIPE, denoising=replace(RECIPE.denoising, **changes))


CHANGES = {
    "timesteps": denoised(schedule=Schedule((1000.0, 400.0), (1.0, 0.5))),
    "sigmas": denoised(schedule=Schedule((1000.0, 500.0), (1.0, 0.4))),
    "first block's timesteps": denoised(first_block=SCHEDULE),
    "context_noise": denoised(context_noise=100.0),
    "rolling": denoised(rolling=True),
    "policy sink_frames": replace(RECIPE, policy=SinkWindow(12, 0)),
    "policy window_frames": replace(RECIPE, policy=SinkWindow(15, 3)),
    "fps": replace(RECIPE, geometry=replace(RECIPE.geometry, fps=24.0)),
    "height": replace(RECIPE, geometry=replace(RECIPE.geometry, height=48)),
    "seed": replace(RECIPE, seed=8),
    "start": replace(RECIPE, start=Start(CLIP)),
    "denoise": replace(RECIPE, start=Start(repainted=CLIP, denoise=0.5)),
}


def manifest(recipe: Recipe):
    content = Content(Script.of(torch.zeros(1, 4, 8)), start=recipe.start.latents)
    return wanted_manifest(recipe, {"model": "a"}, content, torch.device("cpu"))


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_decides_the_latents_is_in_the_manifest(name):
    lines = difference(manifest(RECIPE), manifest(CHANGES[name]))
    print("\n".join(lines))
    assert name in [line.partition(":")[0] for line in lines]


@pytest.mark.parametrize("place", [0, 300, 5_000, 9_999])
def test_a_fingerprint_looks_at_all_of_a_large_tensor(place):
    plain, other = torch.zeros(10_000), torch.zeros(10_000)
    other[max(0, place - 50) : place + 50] = 1
    assert fingerprint(plain) != fingerprint(other)


class Listed:
    """A writer that notes what it is told."""

    def __init__(self):
        self.said: list = []

    def write(self, frames: np.ndarray) -> None:
        self.said.append(len(frames))

    def end_segment(self) -> None:
        self.said.append("end")


class Grey:
    device = torch.device("cpu")


@pytest.mark.parametrize(("left_out", "ends"), [(0, [1, 3, 5]), (1, [2, 4]), (2, [3, 5])])
def test_segments_are_counted_from_the_first_block_that_the_video_shows(left_out, ends):
    writer, filmed = Listed(), []
    video = torch.zeros(1, 3, 4, 8, 8)
    blocks = (BlockDone(block, torch.zeros(1, 16, 1, 1, 1), video=video) for block in range(6))

    def note(done: BlockDone, frames: np.ndarray) -> None:
        filmed.append((done.block, writer.said[-1] == "end"))

    list(written_events(blocks, Grey(), writer, 2, left_out=left_out, written=note))
    assert [block for block, _ in filmed] == list(range(left_out, 6))
    assert [block for block, ended in filmed if ended] == ends


def test_recent_frames_that_outlive_a_block_are_kept_unrotated():
    """One frame more than a block moves once before it leaves."""
    for recent, kept in ((3, 0), (4, 4), (6, 6)):
        assert Partitions(3, 3, recent, clock="window").unrotated_frames == kept
