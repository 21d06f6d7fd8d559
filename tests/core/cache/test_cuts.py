"""Hard cuts, behind which a video begins again, and flushes, which forget all but the sink and the newest block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from packforcing_core.cache.config import (
    DeepForcing,
    Full,
    MemRoPE,
    PackForcing,
    RollingSink,
    SinkWindow,
    TetherCache,
    Window,
)
from packforcing_core.sampler.denoising import BlockDone, Denoising, frame_timesteps
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, commit_block, recache, rollout
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.text.script import Cue, Script
from tests.policies import SMALL
from tests.small import (
    CONFIG,
    DENOISING,
    SmallCompressor,
    block_shape,
    small_cache,
    small_context,
    small_model,
)

CUT = 6
"""The first block behind the cut: every policy has filled its cache before it."""
FIRST = replace(DENOISING, first_block=Schedule.warped((1000.0, 750.0, 500.0, 250.0), shift=5.0))


def made(policy, frames_per_block: int, script: Script, blocks: int, later: int = 0, denoising: Denoising = FIRST):
    """The blocks of a rollout in a cache for 20; with the noise of blocks that come `later`."""
    noise = seeded_noise(7, block_shape(frames_per_block))
    cache = small_cache(policy, frames_per_block, 20 * frames_per_block)
    compression = Compression(SmallCompressor(frames_per_block))

    def shifted(block: int, step: int) -> torch.Tensor:
        return noise(block + later, step)

    events = rollout(small_model(), script, cache, shifted, denoising, blocks, compression=compression)
    return [event for event in events if isinstance(event, BlockDone)]


LENGTHS = [
    *((3, policy) for policy in (*SMALL, PackForcing(3, 3, 2, 3, selector="future", alignment=0.35))),
    (3, PackForcing(3, 3, 2, 3, selector="cosine+newest")),
    *((4, policy) for policy in (PackForcing(4, 4, 2, 3), SinkWindow(16, 4, realign=False), MemRoPE(2, 5))),
    *((1, policy) for policy in (PackForcing(2, 3, 2, 4), Window(5), TetherCache(2, 3, 4))),
]


@pytest.mark.parametrize(("frames_per_block", "policy"), LENGTHS, ids=repr)
def test_the_scene_behind_a_cut_is_a_video_of_its_own(frames_per_block, policy):
    one, two = (small_context(seed=seed) for seed in (1, 2))
    whole = made(policy, frames_per_block, Script((Cue(0, one), Cue(CUT, two, change="cut"))), CUT + 8)
    before = made(policy, frames_per_block, Script.of(one), CUT)
    alone = made(policy, frames_per_block, Script.of(two), 8, later=CUT)
    for done, expected in zip(whole, [*before, *alone], strict=True):
        assert torch.equal(done.latents, expected.latents)
        assert (done.tokens is None) == (expected.tokens is None)
    # It is none of its own where the prompt changes softly, nor where its first block has the steps of the others.
    soft = made(policy, frames_per_block, Script((Cue(0, one), Cue(CUT, two))), CUT + 1)
    short = made(policy, frames_per_block, Script.of(two), 1, later=CUT, denoising=DENOISING)
    assert not torch.equal(whole[CUT].latents, soft[CUT].latents)
    assert not torch.equal(whole[CUT].latents, short[0].latents)


class Frames:
    """A decoder whose frames count on; the first latent frame is one of them."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._next = 0

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        first, self._next = self._next, self._next + 4 * latents.shape[2] - (0 if self._next else 3)
        return torch.arange(float(first), self._next).reshape(1, 1, -1, 1, 1).expand(1, 3, -1, 8, 8)


class Heard(SmallCompressor):
    """Also keeps of each block the numbers of its frames, and whether it was told that they begin a video."""

    def tokens(self, latents: torch.Tensor, video: torch.Tensor | None, first_block: bool) -> torch.Tensor:
        self.heard = [*getattr(self, "heard", []), (video[0, 0, :, 0, 0].tolist(), first_block)]
        return super().tokens(latents, video, first_block)


def test_without_a_sink_the_first_block_behind_a_cut_is_compressed_as_that_of_a_video():
    def heard(script: Script, blocks: int):
        compression = Compression(Heard(3), Frames())
        noise, cache = seeded_noise(7, block_shape(3)), small_cache(PackForcing(0, 3, 2, 3), 3, 60)
        events = rollout(small_model(), script, cache, noise, FIRST, blocks, compression=compression)
        videos = [event.video for event in events if isinstance(event, BlockDone)]
        return compression.compressor.heard, [video.shape[2] for video in videos]

    one, two = (small_context(seed=seed) for seed in (1, 2))
    behind, lengths = heard(Script((Cue(0, one), Cue(CUT, two, change="cut"))), CUT + 3)
    assert behind[CUT:] == heard(Script.of(two), 3)[0]
    assert lengths == [9, *[12] * (CUT + 2)], "as many frames behind a cut as elsewhere"


def test_a_cut_again_and_again_and_a_flush_behind_it():
    texts = [small_context(seed=seed) for seed in range(4)]
    cues = Cue(0, texts[0]), Cue(5, texts[1], change="cut"), Cue(6, texts[2], change="cut")
    script = Script((*cues, Cue(11, texts[3], change="flush")))
    whole = made(PackForcing(3, 3, 2, 3), 3, script, 18)
    later = made(PackForcing(3, 3, 2, 3), 3, Script((Cue(0, texts[2]), Cue(5, texts[3], change="flush"))), 12, later=6)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(whole[6:], later, strict=True))
    assert [done.block for done in whole] == list(range(18))


def test_the_blocks_behind_a_cut_are_counted_on():
    _, cache, _ = committed(PackForcing(3, 6, 2, 4), 9)
    cache.cut()
    assert (cache.next_block, cache.blocks_in_view()) == (9, ())
    assert cache.mid.blocks == []


def test_only_the_first_block_behind_a_cut_takes_the_steps_of_a_first_block():
    steps = {behind: [FIRST.calls(block, behind) for block in range(3)] for behind in (False, True)}
    assert steps == {False: [4, 2, 2], True: [4, 4, 4]}
    repainted = replace(FIRST, repainted_blocks=2, denoise=0.5)  # There the given video decides, not the noise.
    assert [repainted.calls(block, True) for block in range(3)] == [2, 1, 4]


def committed(policy, blocks: int):
    """A cache with `blocks` random clean blocks and its latents, the bank's compressed by chance."""
    model = small_model()
    text = model.encode_text(small_context())
    cache = small_cache(policy, 3, 60)
    torch.manual_seed(5)
    clean = {block: torch.randn(block_shape(3)) for block in range(blocks)}
    for latents in clean.values():
        commit_block(model, text, cache, cache.begin_block(), latents, 0.0)
        commit_due(model, text, cache)
    return model, cache, clean


def commit_due(model, text, cache):
    if cache.due_block is not None:
        tokens = torch.randn(1, cache.shape.compressed_tokens, CONFIG.dim)
        with cache.commit_compressed() as writer:
            model.commit_tokens(tokens, torch.zeros(1, 1), text, writer)


def of_the_ends(attention, window, sink_frames: int):
    """Attention to the first frame of the sink, the newest frame and the block itself: keys are in slot order."""
    frames = [placement.frame for placement in sorted(window.past, key=lambda placement: placement.slot)]
    newest = max(frames)
    kept = [frame == newest or (frame == 0 and sink_frames > 0) for frame in frames]

    def attend(q, k, v):
        tokens = q.shape[1] // 3
        rows = [row for i, keep in enumerate(kept) if keep for row in range(i * tokens, (i + 1) * tokens)]
        rows += range(len(frames) * tokens, k.shape[1])
        return attention(q, k[:, rows], v[:, rows])

    return attend


def test_behind_a_flush_nothing_else_is_read_than_the_first_and_the_newest_frame():
    model, cache, clean = committed(PackForcing(3, 6, 2, 4), 9)
    text = model.encode_text(small_context(seed=2))
    recache(model, text, cache, clean, flush=True)
    noisy = torch.randn(*block_shape(3))
    flow = model.flow(noisy, frame_timesteps(900.0, noisy), text, cache.begin_block())
    past = cache.window().past
    read = [p for p in past if p.frame in (0, past[-1].frame)]
    assert len(read) == 2 < len(past)
    for kv in cache.layers:
        for placement in past:
            if placement not in read:
                kv.k[:, kv.tokens(placement.slot)] = kv.v[:, kv.tokens(placement.slot)] = float("nan")
    view = cache.begin_block()
    assert torch.equal(model.flow(noisy, frame_timesteps(900.0, noisy), text, view), flow)
    commit_block(model, text, cache, view, noisy, 0.0)
    after = model.flow(noisy, frame_timesteps(900.0, noisy), text, cache.begin_block())
    assert not after.isfinite().all(), "the block after sees all that was kept"


@pytest.mark.parametrize(
    "policy",
    [
        *(Full(), Window(9), SinkWindow(9, 3), DeepForcing(2, 3, 6, 9), PackForcing(3, 6, 2, 4), TetherCache(2, 3, 4)),
        *(PackForcing(3, 6, 2, 4, kv_int8="all"), SinkWindow(9, 3, kv_int8="recent"), RollingSink(9)),
        *(DeepForcing(2, 3, 6, 12), MemRoPE(2, 3), PackForcing(3, 3, 2, 4, selector="future", alignment=0.35)),
    ],
    ids=repr,
)
def test_after_a_flush_the_past_is_the_sink_and_the_newest_block_alone(policy):
    model, cache, clean = committed(policy, 9)
    text = model.encode_text(small_context(seed=2))
    sink = -(-cache.partitions.sink_frames // 3)
    recache(model, text, cache, clean, flush=True)
    fresh = small_cache(policy, 3, 60)
    for block in (*range(sink), 8):
        commit_block(model, text, fresh, fresh.begin_block(), clean[block], 0.0)
    assert cache.next_block == 9
    assert cache.mid is None or cache.mid.blocks == []
    whole = fresh.attention
    for number in range(6):  # Until what was gathered of the past would show.
        noisy, latents = torch.randn(2, *block_shape(3))
        window = fresh.window()
        ends = number == 0 and window.pruned_frames is None
        fresh.attention = of_the_ends(whole, window, fresh.partitions.sink_frames) if ends else whole
        flows = []
        for one in (cache, fresh):
            view = one.begin_block()
            flows.append(model.flow(noisy, frame_timesteps(900.0, noisy), text, view))
            commit_block(model, text, one, view, latents, 0.0)
            torch.manual_seed(number)
            commit_due(model, text, one)
        assert torch.equal(*flows)
