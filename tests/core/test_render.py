"""The stages together: recipe, cache, rollout, decoder, film."""

from __future__ import annotations

import gc
import math

import psutil
import pytest
import torch

from packforcing_core.cache.config import DeepForcing, SinkWindow, Window
from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.plan import plan_render
from packforcing_core.recipe.recipe import Recipe, default_policy
from packforcing_core.render.parts import build_cache, latent_events
from packforcing_core.render.writing import WrittenBlock, written_events
from packforcing_core.sampler.denoising import BlockDone, Denoising, StepDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import rollout
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.vae.streaming import StreamingDecoder, decode, to_frames
from packforcing_core.video import SegmentedWriter, VideoFormat, read_frames
from tests.small import CONFIG, DENOISING, small_context, small_model
from tests.vaes import TINY, random_vae


def recipe(blocks: int, policy=None, size: int = 3, seed: int = 7) -> Recipe:
    return Recipe(VideoGeometry(48, 32, 16.0, size, blocks), policy or SinkWindow(9, 3), DENOISING, seed)


def rendered(events) -> list[torch.Tensor]:
    return [event.latents for event in events if isinstance(event, BlockDone)]


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.parametrize(
    ("policy", "size", "message"),
    [
        (Window(2), 3, "must be at least 3"),
        (SinkWindow(12, 10), 3, "must be at least 13.*Raise window_frames or lower sink_frames"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused_before_work(policy, size, message):
    with pytest.raises(PackForcingError, match=message):
        recipe(4, policy, size)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"window_frames": 0}, "from 1 to"), ({"window_frames": 21, "sink_frames": -1}, "from 0 to")],
)
def test_a_knob_out_of_range_is_refused_with_its_range(knobs, message):
    with pytest.raises(PackForcingError, match=message):
        SinkWindow(**knobs)


def test_a_family_remembers_what_it_was_trained_with():
    assert default_policy(FAMILIES["self-forcing"]) == Window(21)
    assert default_policy(FAMILIES["longlive"]) == SinkWindow(12, 3)
    assert default_policy(FAMILIES["causvid"]) == Window(21), (
        "within the 21 frames of its training the same as all history"
    )
    assert default_policy(FAMILIES["rolling-forcing"]) == SinkWindow(21, 3)


def test_a_rolling_recipe_rolls_and_goes_on_from_its_finished_blocks():
    rolling = Denoising(Schedule.warped((1000.0, 750.0, 500.0), 5.0), rolling=True)
    wanted = Recipe(VideoGeometry(48, 32, 16.0, 3, 6), SinkWindow(15, 3), rolling, seed=7)
    events = list(latent_events(small_model(), small_context(), wanted))
    assert [event.step for event in events if isinstance(event, StepDone)] == [0, 1, 2, 2, 2, 2, 2, 2]
    known = [event for event in events if isinstance(event, BlockDone)][:3]
    resumed = rendered(latent_events(small_model(), small_context(), wanted, known))
    assert all(torch.equal(a, b) for a, b in zip(resumed, rendered(events), strict=True))
    cache, planned = build_cache(small_model(), wanted), plan_render(CONFIG, wanted, torch.float32)
    assert cache.nbytes == planned.buffer_bytes
    assert planned.attended_tokens == 15 * planned.tokens_per_frame
    assert planned.attended_tokens == planned.sink_tokens + planned.recent_tokens + planned.current_tokens
    assert planned.current_tokens == 9 * planned.tokens_per_frame
    assert "3 blocks rolling together" in planned.describe()


@pytest.mark.parametrize(
    ("policy", "message"),
    [(DeepForcing(), "deep_forcing.*self-forcing"), (SinkWindow(9, 3), "must be at least 12.*Raise window_frames")],
)
def test_a_memory_that_cannot_roll_is_refused_before_work(policy, message):
    rolling = Denoising(Schedule.warped((1000.0, 750.0, 500.0), 5.0), rolling=True)
    with pytest.raises(PackForcingError, match=message):
        Recipe(VideoGeometry(48, 32, 16.0, 3, 6), policy, rolling, seed=7)


def test_a_film_is_the_decoded_latents_frame_by_frame(tmp_path):
    model, vae, wanted = small_model(), random_vae(TINY), recipe(4)
    g = wanted.geometry
    with SegmentedWriter(tmp_path / "film.mp4", g.width, g.height, VideoFormat("lossless", fps=g.fps)) as writer:
        latents = latent_events(model, small_context(), wanted)
        events = list(written_events(latents, StreamingDecoder(vae), writer, blocks_per_segment=3))
        assert writer.segments == 1
        film = writer.finish()
    expected = to_frames(decode(vae, torch.cat(rendered(events), dim=2)))
    filmed = [event for event in events if isinstance(event, WrittenBlock)]
    assert [event.block for event in filmed] == [0, 1, 2, 3]
    assert [len(event.frames) for event in filmed] == [9, 12, 12, 12]
    frames = list(read_frames(film))
    assert len(frames) == len(expected) == g.pixel_frames == 45
    difference = max(abs(a.astype(int) - b.astype(int)).max() for a, b in zip(frames, expected, strict=True))
    print(f"max difference of a pixel: {difference} of 255")
    assert difference == 0


def test_stopping_leaves_the_finished_blocks_in_a_playable_film(tmp_path):
    wanted = recipe(6)
    writer = SegmentedWriter(tmp_path / "film.mp4", 48, 32, VideoFormat())

    def stop_in_block_3() -> None:
        latents = latent_events(small_model(), small_context(), wanted)
        for event in written_events(latents, StreamingDecoder(random_vae(TINY)), writer, blocks_per_segment=2):
            if isinstance(event, StepDone) and event.block == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), writer:
        stop_in_block_3()
    assert len(list(read_frames(writer.growing_path))) == 33  # Blocks 0 to 2.


def test_memory_is_flat_for_300_blocks():
    """From block 30 on the cache stays at the planned bytes and the process within a few MB."""
    blocks = 300
    one_step = Denoising(Schedule.warped((1000.0,), 5.0))
    wanted = Recipe(VideoGeometry(64, 48, 16.0, 3, blocks), SinkWindow(12, 3), one_step, seed=0)
    model = small_model()
    cache = build_cache(model, wanted)
    planned = plan_render(CONFIG, wanted, torch.float32)
    noise = seeded_noise(0, wanted.geometry.block_shape)
    used, attended = {}, set()
    for event in rollout(model, small_context(), cache, noise, one_step, blocks):
        if not isinstance(event, BlockDone):
            continue
        assert cache.nbytes == planned.buffer_bytes
        if event.block >= 30:
            view_frames = len(cache.partitions.window(cache.committed_frames).past)
            attended.add(view_frames * planned.tokens_per_frame + planned.current_tokens)
        if event.block >= 30 and event.block % 30 == 0:
            gc.collect()
            used[event.block] = rss_mb()
    growth = max(used.values()) - used[30]
    all_mb = planned.cache_bytes * blocks / 3 / 1e6
    print(f"process {used[30]:.0f} MB at block 30, most {growth:+.1f} MB later; all history {all_mb:.0f} MB")
    assert attended == {planned.attended_tokens}
    assert math.isfinite(event.latents.sum())
    assert growth < all_mb / 2
