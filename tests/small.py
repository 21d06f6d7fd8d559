"""Small parts that many tests share: a random transformer of two layers, its context, a cache and a compressor."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import Policy
from packforcing_core.cache.layer_kv import KVShape
from packforcing_core.geometry import compressed_grid
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.config import WanConfig
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
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


def small_shape(frames_per_block: int, config: WanConfig = CONFIG, grid: tuple[int, int] = GRID) -> KVShape:
    return KVShape(
        config.num_layers,
        config.num_heads,
        config.head_dim,
        grid[0] * grid[1],
        torch.float32,
        compressed_tokens=math.prod(compressed_grid(frames_per_block, 2 * grid[0], 2 * grid[1])),
    )


class SmallCompressor:
    """A random linear map of a block's latents to compressed tokens, with the shape of the real thing."""

    def __init__(self, frames_per_block: int, grid: tuple[int, int] = GRID, config: WanConfig = CONFIG, seed: int = 3):
        self._grid = compressed_grid(frames_per_block, 2 * grid[0], 2 * grid[1])
        self._weight = torch.randn(16, config.dim, generator=torch.Generator().manual_seed(seed)) / 4

    def tokens(self, latents: Tensor, video: Tensor | None, first_block: bool) -> Tensor:
        """[1, 16, T, h, w] -> [1, N_c, D]; a video, where there is one, shifts the tokens."""
        pooled = F.adaptive_avg_pool3d(latents, self._grid).flatten(2).transpose(1, 2)
        return pooled @ self._weight + (video.mean() if video is not None else 0)


class SmallDecoder:
    """A stand-in with state, as a causal decoder has: every block adds to what came before."""

    def __init__(self):
        self._sum = 0.0
        self.pushed = 0

    def reset(self) -> None:
        self._sum = 0.0

    def push(self, latents: Tensor) -> Tensor:
        self._sum += latents.mean().item()
        self.pushed += 1
        return torch.full((1, 3, 4 * latents.shape[2], 8, 8), self._sum)


def small_cache(
    policy: Policy,
    frames_per_block: int,
    latent_frames: int = 1 << 20,
    config: WanConfig = CONFIG,
    current_blocks: int = 1,
    batch: int = 1,
) -> KVCache:
    shape = replace(small_shape(frames_per_block, config), batch=batch)
    partitions = policy.partitions(frames_per_block, current_blocks).limited_to(latent_frames)
    return KVCache(partitions, shape, GridRope(config.head_dim, GRID), sdpa)


def block_shape(frames_per_block: int) -> tuple[int, ...]:
    return (1, 16, frames_per_block, 2 * GRID[0], 2 * GRID[1])


def render_blocks(
    policy: Policy, blocks: int, frames_per_block: int = 3, seed: int = 7, known=(), clip=None
) -> list[BlockDone]:
    """The block events of a small rollout, with a stand-in compressor and decoder, planned for `clip` blocks."""
    model = small_model()
    cache = small_cache(policy, frames_per_block, (clip or blocks) * frames_per_block)
    noise = seeded_noise(seed, block_shape(frames_per_block))
    compression = Compression(SmallCompressor(frames_per_block), SmallDecoder())
    found = {done.block: done for done in known}
    events = rollout(model, small_context(), cache, noise, DENOISING, blocks, found.get, compression)
    return [event for event in events if isinstance(event, BlockDone)]


def render_latents(policy: Policy, blocks: int, frames_per_block: int = 3, seed: int = 7, known=()) -> list[Tensor]:
    """The latent blocks of a small rollout, behind those that are known."""
    done = [BlockDone(block, latents) for block, latents in enumerate(known)]
    return [event.latents for event in render_blocks(policy, blocks, frames_per_block, seed, done)]
