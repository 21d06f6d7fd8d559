"""A block costs the same however long the video is."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import PackForcing
from packforcing_core.model.config import WanConfig
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block, commit_due_block
from tests.small import SmallCompressor, small_context, small_model, small_shape

CONFIG = WanConfig(dim=256, ffn_dim=512, num_layers=2, num_heads=4, text_dim=32, freq_dim=32)
GRID = (4, 6)


class Run:
    """A render with the paper's memory, block by block; `skip` commits random keys instead of running the model."""

    def __init__(self):
        shape = small_shape(4, CONFIG, GRID)
        self.cache = KVCache(PackForcing().partitions(4), shape, GridRope(CONFIG.head_dim, GRID), sdpa)
        self.model = small_model(CONFIG)
        self.text = self.model.encode_text(small_context(CONFIG))
        self.compressor = SmallCompressor(4, GRID, CONFIG)
        self.latents = torch.randn(1, 16, 4, 2 * GRID[0], 2 * GRID[1])
        self.waiting = {}

    def block(self) -> float:
        began = time.perf_counter()
        view = self.cache.begin_block()
        for timestep in (1000.0, 500.0):
            self.model.flow(self.latents, frame_timesteps(timestep, self.latents), self.text, view)
        commit_block(self.model, self.text, self.cache, view, self.latents, 0.0)
        self.waiting[view.block] = self.compressor.tokens(self.latents, None, False)
        commit_due_block(self.model, self.text, self.cache, self.waiting)
        return time.perf_counter() - began

    def skip(self, blocks: int) -> None:
        made = torch.randn(3, 1, 4 * GRID[0] * GRID[1], CONFIG.num_heads, CONFIG.head_dim)
        twin = made[:, :, : self.cache.shape.compressed_tokens]
        for _ in range(blocks):
            view = self.cache.begin_block()
            self.waiting[view.block] = self.compressor.tokens(self.latents, None, False)
            self._write(self.cache.commit(view), made)
            if self.cache.due_block is not None:
                self._write(self.cache.commit_compressed(), twin)

    def _write(self, opening, made):
        with opening as writer:
            for layer in range(CONFIG.num_layers):
                writer.attend(layer, *made)


@pytest.mark.long  # It times: on a busy machine it may fail without a fault.
def test_block_1000_takes_as_long_as_block_150():
    """Two runs in turns, so that a busy machine slows both."""
    late, early = Run(), Run()
    late.skip(980)
    early.skip(130)
    times = [(late.block(), early.block()) for _ in range(30)]
    late_ms, early_ms = (median(column) * 1000 for column in zip(*times, strict=True))
    print(f"median per block around 1000: {late_ms:.1f} ms, around 150: {early_ms:.1f} ms, {late_ms / early_ms:.3f}")
    assert late_ms / early_ms <= 1.15
    assert late.cache.nbytes == early.cache.nbytes
