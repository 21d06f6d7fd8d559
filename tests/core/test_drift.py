"""Fast paths against their plain twins over 100 blocks of a random model: errors feed back through the cache."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import POLICY_PRESETS
from packforcing_core.checkpoint.families import DEFAULT_FAMILY
from packforcing_core.geometry import VideoGeometry
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.ops import TorchOps
from packforcing_core.render import Recipe, build_cache, build_twins
from packforcing_core.sampler.rollout import BlockDone, Denoising, rollout
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
    policy = POLICY_PRESETS["PackForcing zero-shot"]
    recipe = Recipe(geometry, policy, Denoising.of_family(DEFAULT_FAMILY), seed=0)
    twins = build_twins(model, vae, None)
    text = model.encode_text(word_context("a red circle and a blue square"))
    with torch.inference_mode():
        events = rollout(model, text, build_cache(model, recipe), recipe.noise(), recipe.denoising, BLOCKS, twins=twins)
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
