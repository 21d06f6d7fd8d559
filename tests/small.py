"""Small parts that many tests share: a random transformer of two layers, its context, a cache for it."""

from __future__ import annotations

import torch
from torch import Tensor

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import Policy
from packforcing_core.cache.layer_kv import KVShape
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.config import WanConfig
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import BlockDone, Denoising, rollout
from packforcing_core.sampler.schedule import Schedule

CONFIG = WanConfig(dim=128, ffn_dim=192, num_layers=2, num_heads=2, text_dim=32, freq_dim=32)
GRID = (2, 3)
DENOISING = Denoising(Schedule.warped((1000.0, 500.0), shift=5.0))


def small_net(config: WanConfig = CONFIG, seed: int = 0) -> Wan:
    """Random weights whose attention is far from uniform, so that a wrong key shows."""
    torch.manual_seed(seed)
    net = Wan(config, TorchOps).eval().requires_grad_(False)
    for layer in net.blocks:
        for norm in (layer.self_attn.norm_q, layer.self_attn.norm_k):
            norm.weight.mul_(2)
    return net


def small_model(config: WanConfig = CONFIG, seed: int = 0) -> CausalWan:
    return CausalWan(small_net(config, seed), config)


def small_context(config: WanConfig = CONFIG, tokens: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(1, tokens, config.text_dim, generator=torch.Generator().manual_seed(seed))


def small_cache(
    policy: Policy, frames_per_block: int, latent_frames: int = 1 << 20, config: WanConfig = CONFIG
) -> KVCache:
    shape = KVShape(config.num_layers, config.num_heads, config.head_dim, GRID[0] * GRID[1], torch.float32)
    partitions = policy.partitions(frames_per_block).limited_to(latent_frames)
    return KVCache(partitions, shape, GridRope(config.head_dim, GRID), sdpa)


def block_shape(frames_per_block: int) -> tuple[int, ...]:
    return (1, 16, frames_per_block, 2 * GRID[0], 2 * GRID[1])


def render_latents(policy: Policy, blocks: int, frames_per_block: int = 3, seed: int = 7, known=()) -> list[Tensor]:
    """The latent blocks of a small rollout."""
    model = small_model()
    cache = small_cache(policy, frames_per_block, blocks * frames_per_block)
    noise = seeded_noise(seed, block_shape(frames_per_block))
    events = rollout(model, model.encode_text(small_context()), cache, noise, DENOISING, blocks, known)
    return [event.latents for event in events if isinstance(event, BlockDone)]
