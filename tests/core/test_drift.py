"""Fast paths against their plain twins over 100 blocks of the demo model: errors feed back through the cache."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import POLICY_PRESETS
from packforcing_core.checkpoint.families import DEFAULT_FAMILY
from packforcing_core.compressor.compressor import Compressor
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.demo import DEMO_CONFIG, build_demo_model, demo_context
from packforcing_core.geometry import VideoGeometry
from packforcing_core.model.causal import CausalWan
from packforcing_core.render import Recipe, build_cache
from packforcing_core.sampler.rollout import BlockDone, Denoising, Twins, rollout

BLOCKS = 100
WIDTH, HEIGHT = 64, 48


class PlainCommit(CausalWan):
    """Commits by a whole pass, head and all."""

    def commit(self, latents, timesteps, text, history):
        self.flow(latents, timesteps, text, history)

    def commit_tokens(self, tokens, timesteps, text, history):
        self._layers(tokens.to(self.dtype), self._modulation(timesteps), text, history)


def blocks_of(model: CausalWan):
    geometry = VideoGeometry(WIDTH, HEIGHT, fps=16.0, frames_per_block=3, blocks=BLOCKS)
    policy = POLICY_PRESETS["PackForcing zero-shot"]
    recipe = Recipe(geometry, policy, Denoising.of_family(DEFAULT_FAMILY), seed=0)
    high_res = build_high_res(DEMO_CONFIG.dim).eval().requires_grad_(False)
    twins = Twins(Compressor(model, "high_res", high_res=high_res))
    text = model.encode_text(demo_context("a red circle and a blue square"))
    with torch.inference_mode():
        events = rollout(model, text, build_cache(model, recipe), recipe.noise(), recipe.denoising, BLOCKS, twins=twins)
        for event in events:
            if isinstance(event, BlockDone):
                yield event.latents, event.selection


@pytest.mark.long
@pytest.mark.parametrize("fast_path", ["short commit", "compiled"])
def test_a_fast_path_does_not_drift_from_its_plain_twin(fast_path):
    net = build_demo_model().net
    plain = blocks_of(PlainCommit(net, DEMO_CONFIG))
    fast = blocks_of(CausalWan(net, DEMO_CONFIG, compiled=fast_path == "compiled"))
    differences, same = [], 0
    for (ours, chosen), (theirs, expected) in zip(fast, plain, strict=True):
        differences.append(((ours - theirs).square().mean().sqrt() / theirs.std()).item())
        same += chosen == expected
    told = ", ".join(f"block {b}: {differences[b - 1]:.1e}" for b in (1, 10, 20, 50, 100))
    print(f"{fast_path}: {told}; the worst {max(differences):.1e}; selections the same in {same} of {BLOCKS} blocks")
    assert max(differences) < 1e-3
