"""The short commit (the last layer's keys and values, no head) against its plain twin, a whole pass that is thrown
away.
"""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import DeepForcing, Full, PackForcing, Policy, SinkWindow
from packforcing_core.model.causal import CausalWan
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
from tests.exactness import DEEP, steps_off
from tests.kept import kept
from tests.small import (
    CONFIG,
    DENOISING,
    SmallCompressor,
    SmallDecoder,
    block_shape,
    small_cache,
    small_context,
    small_net,
)

POLICIES = {
    "full": Full(),
    "sink_window": SinkWindow(12, 3),
    "deep_forcing": DeepForcing(),
    "packforcing": PackForcing(top_k_blocks=3, bank_blocks=5),
}


class WholeCommit(CausalWan):
    """Commits by a whole pass, head and all."""

    def commit(self, latents, timesteps, text, history):
        self.flow(latents, timesteps, text, history)

    def commit_tokens(self, tokens, timesteps, text, history):
        self._layers(tokens.to(self.dtype), self._modulation(timesteps), text, history)


def rendered(model: CausalWan, policy: Policy, blocks: int = 12) -> tuple[torch.Tensor, KVCache]:
    cache = small_cache(policy, 3, 3 * blocks)
    compression = Compression(SmallCompressor(3), SmallDecoder())
    events = rollout(
        model,
        small_context(),
        cache,
        seeded_noise(7, block_shape(3)),
        DENOISING,
        blocks,
        compression=compression,
    )
    return torch.cat([event.latents for event in events if isinstance(event, BlockDone)]), cache


def past_of(cache: KVCache) -> dict[str, torch.Tensor]:
    """What the layers keep of frames, and the banks. The last layer's mid slots hold the same in another order (a whole
    pass over compressed tokens showed its own choice there before), and the current block's rows are scratch.
    """
    found = {}
    for number, layer in enumerate(cache.layers):
        past = slice(0, layer.mid(0).start)
        found |= {f"{number}.k": layer.k[:, past], f"{number}.v": layer.v[:, past]}
        found |= {f"{number}.{name}": getattr(layer, name) for name in ("timeless_k", "candidate_v", "query_sums")}
    if cache.mid:
        found |= {f"bank{way}": tensor for way, tensor in kept(cache.mid._banks).items()}
    return {name: tensor for name, tensor in found.items() if tensor.numel()}


@pytest.mark.parametrize("name", POLICIES)
def test_a_short_commit_leaves_what_a_whole_pass_leaves(name):
    short, short_cache = rendered(CausalWan(small_net(), CONFIG), POLICIES[name])
    whole, whole_cache = rendered(WholeCommit(small_net(), CONFIG), POLICIES[name])
    print(f"max difference of the latents {(short - whole).abs().max():.1e}, deviation {whole.std():.2f}")
    if not short_cache.partitions.bank:
        assert torch.equal(short, whole)
    ours, theirs = past_of(short_cache), past_of(whole_cache)
    assert ours.keys() == theirs.keys()
    compared = list(ours)
    if not short_cache.partitions.bank:
        assert all(torch.equal(ours[k], theirs[k]) for k in compared)
    off = max(steps_off(ours[k], theirs[k]) for k in compared if theirs[k].any())
    print(f"cache: {off:.1f} rounding steps apart, latents: {steps_off(short, whole):.1f}")
    assert off < DEEP
    assert steps_off(short, whole) < DEEP


def test_a_commit_runs_neither_the_last_layers_rest_nor_the_head():
    net = small_net()
    ran = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model = CausalWan(net, CONFIG)
    cache = small_cache(Full(), 3, 6)
    text = model.encode_text(small_context())
    view = cache.begin_block()
    ran.clear()
    with cache.commit(view) as writer:
        model.commit(torch.randn(block_shape(3)), torch.zeros(1, 3), text, writer)
    last = f"blocks.{CONFIG.num_layers - 1}."
    assert [name for name in ran if name.startswith("head")] == []
    assert {name.removeprefix(last) for name in ran if name.startswith(last)} == {
        "norm1",
        *(f"self_attn.{part}" for part in ("q", "k", "v", "norm_q", "norm_k")),
    }
    assert "blocks.0.ffn.2" in ran
