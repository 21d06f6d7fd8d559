"""Which model a compressor belongs to: a few of the model's own numbers, written into the compressor's file.

Fine-tuned checkpoints of one origin have the same names and shapes, and differ by little. A digest would tell them
apart but would also refuse the same weights in another dtype; samples tell both cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 64
SAME, DOUBTFUL = 0.005, 0.06
"""Relative differences. Rounding to bfloat16 moves numbers by 0.0017 of their size, to fp8 (e4m3) by 0.026; a training
moves them by about as much as fp8.
"""
SAMPLED = ("self_attn.q.weight", "self_attn.k.weight", "self_attn.v.weight", "ffn.0.weight", "ffn.2.weight")


def sampled(weights: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """SAMPLES elements, evenly spread, of some matrices of the first, the middle and the last layer of a transformer
    under its official names. Weights of 8 bits and packed ones, whose scales are unknown here, are left out.
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
    # Five digits: more than bfloat16 has, and a file's header stays small.
    return [float(f"{number:.5g}") for number in flat[index.to(flat.device)].float().tolist()]


def difference(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> float | None:
    """The length of the difference relative to that of `one`, over the matrices that both have; None where they have
    none in common, inf where one has other sizes.
    """
    common = [name for name in one if name in other]
    if not common:
        return None
    if any(len(one[name]) != len(other[name]) for name in common):
        return math.inf
    pairs = [(a, b) for name in common for a, b in zip(one[name], other[name], strict=True)]
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / max(1e-30, math.sqrt(sum(a * a for a, _ in pairs)))


def was_fp8(samples: Mapping[str, list[float]]) -> bool:
    """Whether all numbers are such as fp8 has: a file of 8 bits whose weights were cast when it was read."""
    numbers = torch.tensor([number for matrix in samples.values() for number in matrix])
    kinds = torch.float8_e4m3fn, torch.float8_e5m2
    return any(torch.allclose(numbers.to(kind).float(), numbers, rtol=1e-4, atol=0) for kind in kinds)


def parse(text: str) -> dict[str, list[float]] | None:
    """The samples that `json.dumps(sampled(weights))` wrote; None where the text is something else."""
    try:
        read = json.loads(text)
        return {str(name): [float(number) for number in numbers] for name, numbers in read.items()}
    except (ValueError, TypeError, AttributeError):
        return None
