"""Identifies the model that a compressor was trained for, by samples of the model's weights in the compressor's file.

Fine-tunes of one model have the same names and shapes and similar weights. A hash would tell them apart, but would also
refuse the same weights in another dtype. Samples handle both cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 64
SAME, DOUBTFUL = 0.005, 0.06
"""Relative differences. Rounding to bfloat16 changes weights by 0.0017 of their norm, rounding to fp8 (e4m3) by 0.026;
a training run changes them by about as much as fp8.
"""
SAMPLED = ("self_attn.q.weight", "self_attn.k.weight", "self_attn.v.weight", "ffn.0.weight", "ffn.2.weight")


def sampled(weights: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """SAMPLES evenly spread elements of some matrices in the first, middle and last layer of a transformer, by official
    name. Packed and 8-bit weights, whose scales are unknown here, are skipped.
    """
    layers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("blocks.")})
    names = [f"blocks.{layer}.{part}" for layer in dict.fromkeys(_ends_and_middle(layers)) for part in SAMPLED]
    return {name: _elements(weights[name]) for name in names if name in weights and _is_plain(weights[name])}


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.element_size() > 1


def _ends_and_middle(layers: list[int]) -> list[int]:
    return [layers[0], layers[len(layers) // 2], layers[-1]] if layers else []


def _elements(weight: Tensor) -> list[float]:
    flat = weight.detach().reshape(-1)
    index = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64).long()
    # Five digits: more precise than bfloat16, and the file's header stays small.
    return [float(f"{number:.5g}") for number in flat[index.to(flat.device)].float().tolist()]


def difference(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> float | None:
    """The norm of the difference relative to the norm of `one`, over the matrices in both; None if they share none, inf
    if their sizes differ.
    """
    common = [name for name in one if name in other]
    if not common:
        return None
    if any(len(one[name]) != len(other[name]) for name in common):
        return math.inf
    pairs = [(a, b) for name in common for a, b in zip(one[name], other[name], strict=True)]
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / max(1e-30, math.sqrt(sum(a * a for a, _ in pairs)))


def was_fp8(samples: Mapping[str, list[float]]) -> bool:
    """Whether all values are fp8 values: an 8-bit file whose weights were cast when it was read."""
    numbers = torch.tensor([number for matrix in samples.values() for number in matrix])
    kinds = torch.float8_e4m3fn, torch.float8_e5m2
    return any(torch.allclose(numbers.to(kind).float(), numbers, rtol=1e-4, atol=0) for kind in kinds)


def parse(text: str) -> dict[str, list[float]] | None:
    """The samples in text written by `json.dumps(sampled(weights))`; None for any other text."""
    try:
        read = json.loads(text)
        return {str(name): [float(number) for number in numbers] for name, numbers in read.items()}
    except (ValueError, TypeError, AttributeError):
        return None
