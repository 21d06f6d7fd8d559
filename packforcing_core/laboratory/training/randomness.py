"""Random numbers of a step, drawn on the CPU from a seed and a key, never from global state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def step_generator(seed: int, *key: int | str) -> torch.Generator:
    """Returns a separate generator for each key, such as the number of a step. It is the same in every process and on
    every machine.
    """
    name = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


class SampleNoise:
    """Random numbers for the samples of one step. Those of sample i depend only on (seed, step, i), and not on its rank
    or on the rest of the batch.

    `indices` are the samples' numbers in the global batch of all ranks. Each call continues each sample's sequence and
    returns [B, *shape].
    """

    def __init__(self, seed: int, step: int, indices: Sequence[int]):
        self._generators = [step_generator(seed, step, index) for index in indices]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Returns standard normal numbers, float32."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self._generators])

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Returns uniform numbers in 0..1, float32."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators])

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Returns uniform integers in 0..`high` - 1."""
        return torch.stack([torch.randint(high, shape, generator=g) for g in self._generators])
