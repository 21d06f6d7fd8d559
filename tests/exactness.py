"""How near a float32 result comes to its reference in float64: the measure of every tolerance on numbers.

Processors add up in different orders, so a result in float32 is off by some multiple of the rounding step of the
largest number that took part. Which multiple, depends on the processor, its kernels and its threads; a wrong key, row
or layer is off by a thousand times more. So a limit is a number of rounding steps, never an absolute difference, and
what it is compared with is computed in float64 (or, where that cannot be, by another path in float32).

A choice (a selected block, a kept token, a code in 8 bits) is no number: two processors may break a near tie
differently. Tests pin choices to those of the reference, or count how many are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

STEP = 2.0**-23
"""The rounding step of float32, relative to a number's size."""
SHALLOW = 64
"""Rounding steps after a few operations: a rotation, a norm, one attention."""
DEEP = 1024
"""Rounding steps after a whole network, or a rollout of few blocks through it."""

Network = TypeVar("Network", bound=nn.Module)


def in_float64(network: Network) -> Network:
    """A copy of `network` that computes in float64."""
    return copy.deepcopy(network).double()


def steps_off(ours, reference) -> float:
    """The largest difference of two tensors or arrays, in rounding steps of the reference's largest magnitude.

    NaN where either holds one, so that a comparison with a limit fails.
    """
    found, expected = (torch.as_tensor(x).detach().double() for x in (ours, reference))
    return ((found - expected).abs().max() / (STEP * expected.abs().max())).item()


def same_but_for_ties(ours: Collection[int], expected: Collection[int], scores: Mapping[int, float] | Sequence[float]):
    """Whether a choice of as many is the expected one, where candidates of one score may stand for each other: `scores`
    that are less than `DEEP` rounding steps of the largest apart.
    """
    swapped = [scores[candidate] for candidate in set(ours) ^ set(expected)]
    largest = max(map(abs, scores.values() if isinstance(scores, Mapping) else scores), default=0.0)
    return len(ours) == len(expected) and (not swapped or max(swapped) - min(swapped) < DEEP * STEP * largest)
