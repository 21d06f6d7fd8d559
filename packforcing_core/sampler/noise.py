"""Noise that depends only on (seed, block, step).

So a seed gives the same video at any length, on any device, with or without interruptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

NoiseSource = Callable[[int, int], Tensor]
"""`noise(block, step)` -> [1, 16, frames_per_block, h, w] float32 on the CPU; step 0 is the block's first noise."""


def seeded_noise(seed: int, shape: tuple[int, ...], take: int = 0) -> NoiseSource:
    """Gaussian noise of `shape`, drawn on the CPU from a generator seeded with a hash of (seed, block, step).

    The number of the retake is hashed too: repeating a moment gives new noise, even with the same seed.
    """
    again = f"/{take}" if take else ""

    def noise(block: int, step: int) -> Tensor:
        digest = hashlib.blake2b(f"{seed}/{block}/{step}{again}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    return noise
