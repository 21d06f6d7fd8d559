"""Over 100 blocks errors feed back through the cache: fast paths against their plain twins on a random model, and a
past in 8 or 4 bits against the past as it is on the miniature, whose films the checker can read.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from packforcing_core.cache.config import POLICY_PRESETS
from packforcing_core.checkpoint.families import DEFAULT_FAMILY
from packforcing_core.geometry import VideoGeometry
from packforcing_core.laboratory.evaluation.little_world.checker import check_video
from packforcing_core.laboratory.evaluation.little_world.report import WorldReport
from packforcing_core.miniature import load as miniature
from packforcing_core.miniature.world import FPS
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.ops import TorchOps
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_cache, build_compression
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.sampler.rollout import rollout
from packforcing_core.vae.streaming import StreamingDecoder, to_frames
from packforcing_core.vae.wan_vae import WanVAE
from tests.random_wan import RANDOM_CONFIG, build_random_model, build_random_vae, word_context

BLOCKS = 100
WIDTH, HEIGHT = 48, 32


class PlainCommit(CausalWan):
    """Commits by a whole pass, head and all."""

    def commit(self, latents, timesteps, text, history):
        self.flow(latents, timesteps, text, history)

    def commit_tokens(self, tokens, timesteps, text, history):
        self._layers(tokens.to(self.dtype), self._modulation(timesteps), text, history)


class PlainConv3d(TorchOps.Conv3d):
    """Not quite PyTorch's own class: it is called, never taken apart."""


class PlainOps(TorchOps):
    Conv3d = PlainConv3d


def plain_vae() -> WanVAE:
    fast = build_random_vae()
    vae = WanVAE(fast.config, PlainOps)
    vae.load_state_dict(fast.state_dict())
    return vae.eval().requires_grad_(False)


def blocks_of(model: CausalWan, vae: WanVAE):
    geometry = VideoGeometry(WIDTH, HEIGHT, fps=16.0, frames_per_block=3, blocks=BLOCKS)
    policy = POLICY_PRESETS["PackForcing"]
    recipe = Recipe(geometry, policy, Denoising.of_family(DEFAULT_FAMILY), seed=0)
    compression = build_compression(model, vae, None)
    text = word_context("a red circle and a blue square")
    with torch.inference_mode():
        events = rollout(
            model, text, build_cache(model, recipe), recipe.noise(), recipe.denoising, BLOCKS, compression=compression
        )
        for event in events:
            if isinstance(event, BlockDone):
                yield event.latents, event.selection


@pytest.mark.long
@pytest.mark.parametrize("fast_path", ["short commit and decoder by frames", "the same, compiled"])
def test_a_fast_path_does_not_drift_from_its_plain_twin(fast_path):
    net = build_random_model().net
    plain = blocks_of(PlainCommit(net, RANDOM_CONFIG), plain_vae())
    fast = blocks_of(CausalWan(net, RANDOM_CONFIG, compiled=fast_path.endswith("compiled")), build_random_vae())
    differences, same = [], 0
    for (ours, chosen), (theirs, expected) in zip(fast, plain, strict=True):
        differences.append(((ours - theirs).square().mean().sqrt() / theirs.std()).item())
        same += chosen == expected
    told = ", ".join(f"block {b}: {differences[b - 1]:.1e}" for b in (1, 10, 20, 50, 100))
    print(f"{fast_path}: {told}; the worst {max(differences):.1e}; selections the same in {same} of {BLOCKS} blocks")
    assert max(differences) < 1e-3


def film_of(kv_int8: str, dtype: torch.dtype):
    """Latents, choices and frames of each block of the miniature's film, with its own memory."""
    model, vae, size = miniature.load_model(dtype), miniature.load_vae(dtype), miniature.SIZE
    geometry = VideoGeometry(*size, fps=float(FPS), frames_per_block=miniature.FAMILY.frames_per_block, blocks=BLOCKS)
    policy = replace(miniature.MEMORY, kv_int8=kv_int8)
    recipe = Recipe(geometry, policy, Denoising.of_family(miniature.FAMILY), seed=0)
    trained = miniature.load_compressor(dtype=dtype)
    compression = build_compression(model, vae, trained.high_res if trained else None)
    text, decoder = miniature.load_text()([miniature.PROMPT]), StreamingDecoder(vae)
    with torch.inference_mode():
        events = rollout(
            model, text, build_cache(model, recipe), recipe.noise(), recipe.denoising, BLOCKS, compression=compression
        )
        for event in events:
            if isinstance(event, BlockDone):
                video = decoder.push(event.latents.to(dtype)) if event.video is None else event.video
                yield event.latents, event.selection, to_frames(video)


def told(report: WorldReport) -> str:
    return f"{report.right:.1%} of the frames right, things {report.objects_right:.1%}"


@pytest.mark.long
@pytest.mark.parametrize("dtype", [miniature.fast_dtype()], ids=str)
@pytest.mark.parametrize("parts", ["all", "all_int4"])
def test_a_film_with_its_past_in_few_bits_shows_what_the_plain_one_shows(parts, dtype):
    torch.set_num_threads(1)
    differences, same, films = [], 0, ([], [])
    for number, made in enumerate(zip(film_of(parts, dtype), film_of("none", dtype), strict=True), 1):
        (ours, chosen, frames), (theirs, expected, plain_frames) = made
        differences.append(((ours - theirs).square().mean().sqrt() / theirs.std()).item())
        same += chosen == expected
        films[0].append(frames)
        films[1].append(plain_frames)
        if number in (1, 2, 10, 20, 50, BLOCKS):
            print(f"block {number}: {differences[-1]:.1e} of the deviation", flush=True)
    ours, plain = (np.concatenate(film) for film in films)
    pixels = np.abs(ours.astype(int) - plain.astype(int)).mean()
    print(f"the worst {max(differences):.1e}; selections the same in {same} of {BLOCKS}; pixels {pixels:.2f} of 255")
    reports = [check_video(film, miniature.PROMPT) for film in (ours, plain)]
    print(f"{parts}: {told(reports[0])}; plain: {told(reports[1])}")
    assert 0 < differences[1] < 0.1
    assert reports[0].right > reports[1].right - 0.05
