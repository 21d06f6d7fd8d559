"""Renders with a folder, under prompts that change and from a beginning: stopped and resumed, they are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.folder.content import Content
from packforcing_core.folder.folder import open_render
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_compression
from packforcing_core.render.recording import recorded_events, wanted_manifest
from packforcing_core.render.writing import VideoJob, written_render
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.start import Start
from packforcing_core.text.script import Cue, Script
from packforcing_core.video import VideoFormat, read_frames
from tests.small import DENOISING, small_context, small_model
from tests.survivor import POLICIES
from tests.vaes import TINY, random_vae

pytestmark = pytest.mark.integration

SCRIPT = Script(
    (
        Cue(0, small_context(seed=1)),
        Cue(3, small_context(seed=2), blend_blocks=1, recache=True),
        Cue(6, small_context(seed=3)),
    )
)
GIVEN = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(3))
STARTS = {
    "noise": Start(),
    "given": Start(GIVEN),
    "left out": Start(GIVEN, left_out=True),
    "repainted": Start(repainted=GIVEN, denoise=0.5),
}


def events(root: Path, start: str, policy: str, name: str, script: Script = SCRIPT, blocks: int = 8):
    plain = Recipe(VideoGeometry(48, 32, 16.0, 3, blocks), POLICIES[policy], DENOISING, 7)
    recipe = plain.begun(STARTS[start], plain.geometry.seconds)
    model, vae = small_model(), random_vae(TINY)
    content = Content(script, start=recipe.start.latents)
    wanted = wanted_manifest(recipe, {"model": "small"}, content, torch.device("cpu"))
    folder = open_render(root, name, "resume", wanted, content, recipe.geometry.block_shape)
    recipe = recipe.begun_with(folder.content.start)
    job = VideoJob(root / f"{name}.mp4", VideoFormat("lossless", fps=16), 2, vae, "small")

    def source(*, first: int, frugal: bool):
        compression = build_compression(model, vae, None) if recipe.partitions.bank else None
        return recorded_events(model, recipe, folder, compression, first=first, frugal=frugal)

    with torch.inference_mode():
        yield from written_render(folder, recipe, job, source)


def stop_after(block: int, *arguments) -> None:
    for event in events(*arguments):
        if isinstance(event, BlockDone) and event.block == block:
            return


def frames(root: Path, name: str) -> np.ndarray:
    return np.stack(list(read_frames(root / f"{name}.mp4"))).astype(int)


@pytest.mark.parametrize(
    ("start", "policy", "stops"),
    [
        ("noise", "packforcing", (2, 4, 5)),
        ("given", "packforcing", (4,)),
        ("given", "deep_forcing", (5,)),
        ("left out", "window", (4,)),
        ("repainted", "window", (2,)),
    ],
)
def test_a_stopped_render_resumes_to_the_same_film(tmp_path, start: str, policy: str, stops: tuple[int, ...]):
    whole = list(events(tmp_path, start, policy, "whole"))
    blocks = [event.block for event in whole if isinstance(event, BlockDone)]
    for stop in stops:
        stop_after(stop, tmp_path, start, policy, f"stopped-{stop}")
        list(events(tmp_path, start, policy, f"stopped-{stop}"))
        difference = np.abs(frames(tmp_path, "whole") - frames(tmp_path, f"stopped-{stop}")).max()
        print(f"stopped after block {stop} of {len(blocks)}: largest difference {difference} of 255")
        assert difference == 0
    expected = {"left out": 12 * 8}.get(start, 12 * 8 - 3)
    assert len(frames(tmp_path, "whole")) == expected


def test_a_film_that_leaves_out_its_beginning_is_the_end_of_the_whole(tmp_path):
    list(events(tmp_path, "given", "window", "shown", blocks=10))
    list(events(tmp_path, "left out", "window", "left"))
    assert np.array_equal(frames(tmp_path, "left"), frames(tmp_path, "shown")[21:])


def test_other_prompts_or_another_beginning_are_another_render(tmp_path):
    stop_after(3, tmp_path, "given", "window", "film")
    other = Script((*SCRIPT.cues[:2], Cue(7, SCRIPT.cues[2].context)))
    with pytest.raises(PackForcingError, match="prompt: it changes at other times"):
        list(events(tmp_path, "given", "window", "film", other))
    with pytest.raises(PackForcingError, match="start: the render has"):
        list(events(tmp_path, "noise", "window", "film"))
