"""Ten thousand blocks with everything a render keeps: memory, handles, threads and time per block stay flat."""

from __future__ import annotations

import gc
import time
from itertools import pairwise

import psutil
import pytest
import torch

from packforcing_core.cache.config import PackForcing
from packforcing_core.folder.content import Content
from packforcing_core.folder.fingerprint import fingerprint
from packforcing_core.folder.folder import open_render
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_compression
from packforcing_core.render.recording import recorded_events, wanted_manifest
from packforcing_core.render.writing import VideoJob, WrittenBlock, written_render
from packforcing_core.sampler.denoising import Denoising
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.text.script import Script
from packforcing_core.video import VideoFormat, probe
from tests.small import small_context, small_model
from tests.vaes import TINY, random_vae

BLOCKS, EVERY = 10_000, 500


@pytest.mark.long
def test_ten_thousand_blocks_are_flat_in_memory_handles_threads_and_time(tmp_path):
    one_step = Denoising(Schedule.warped((1000.0,), 5.0))
    policy = PackForcing(sink_frames=1, recent_frames=1, top_k_blocks=4, bank_blocks=32)
    recipe = Recipe(VideoGeometry(16, 16, 16.0, 1, BLOCKS), policy, one_step, seed=0)
    model, vae = small_model(), random_vae(TINY)
    content, shape = Content(Script.of(small_context())), recipe.geometry.block_shape
    identity = {"model": fingerprint(model.net.state_dict())}
    wanted = wanted_manifest(recipe, identity, content, torch.device("cpu"))
    folder = open_render(tmp_path, "long", "resume", wanted, content, shape)

    def source(*, first: int, frugal: bool):
        return recorded_events(model, recipe, folder, build_compression(model, vae, None), first=first, frugal=frugal)

    job = VideoJob(tmp_path / "long.mp4", VideoFormat(fps=16), 100, vae, "tiny")
    process, started, rows = psutil.Process(), time.process_time(), []
    with torch.inference_mode():
        for event in written_render(folder, recipe, job, source):
            if isinstance(event, WrittenBlock) and (event.block + 1) % EVERY == 0:
                gc.collect()
                rss = process.memory_info().rss / 1e6
                rows.append((time.process_time() - started, rss, process.num_fds(), process.num_threads()))
                print(f"block {event.block + 1}: {rows[-1][0]:.0f} s, {rss:.1f} MB, {rows[-1][2:]}", flush=True)
    paces = [(b[0] - a[0]) / EVERY for a, b in pairwise(rows)]
    tail = [row[1] for row in rows[2:]]
    print(
        f"{1000 * paces[0]:.1f} ms a block at first, {1000 * paces[-1]:.1f} at the end; "
        f"{tail[0]:.1f} to {tail[-1]:.1f} MB"
    )
    assert probe(tmp_path / "long.mp4").frames == recipe.geometry.pixel_frames
    assert max(tail) - tail[0] < 20, "MB"
    # Encoders at work come and go with a few of each: what stays is the least that is seen.
    for column, what in ((2, "file handles"), (3, "threads")):
        early, late = (min(row[column] for row in part) for part in (rows[:5], rows[-5:]))
        assert late <= early + 1, what
    assert paces[-1] < 1.5 * paces[0], "seconds of processor time"
