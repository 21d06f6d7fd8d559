"""8-bit weights with scales: who can read which, and decoding them.

There is one scale per weight, or one per row (output) of it; the weight is code times scale. Names: `scale_weight`
(with the marker `scaled_fp8`, which ComfyUI also reads) and `weight_scale` (LightX2V).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor

from ..errors import PackForcingError
from .files import TensorInfo

# Dtypes of codes that a scale may belong to, in safetensors' spelling.
CODES = frozenset({"F8_E4M3", "F8_E5M2", "I8"})

_OF_THE_HOST = ("comfy_quant", "weight_scale_2", "pre_quant_scale")
# Scales of activations, for 8-bit multiplication; decoded weights do not need them.
OF_INPUTS = ("input_scale", "scale_input")


class Scaled(Enum):
    """Who can interpret the scales of a file."""

    NOT = "there are none"
    HERE = "decoded here; ComfyUI would not see them"
    ANYWHERE = "decoded here, and known to ComfyUI"
    HOST = "known to ComfyUI only"


def scaled(scales: Mapping[str, TensorInfo], table: bool) -> Scaled:
    """From the names of the file's scales and markers, and whether its metadata has a `table` of quantised layers."""
    kinds = {name.rsplit(".", 1)[-1] for name in scales}
    if table or kinds.intersection(_OF_THE_HOST):
        return Scaled.HOST
    if "scaled_fp8" in scales:
        return Scaled.ANYWHERE
    return Scaled.HERE if scales else Scaled.NOT


def pair(weights: Mapping[str, TensorInfo], scales: Mapping[str, TensorInfo]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(weight -> its scale, problems): every scale must belong to an 8-bit weight, and every such weight must
    have one.
    """
    pairs: dict[str, str] = {}
    problems = []
    for name, info in scales.items():
        layer, _, kind = name.rpartition(".")
        weight = f"{layer}.weight"
        if name == "scaled_fp8" or kind in OF_INPUTS:
            continue
        codes = weights.get(weight)
        if codes is None or codes.dtype not in CODES:
            problems.append(f"{name} is a scale without an 8-bit weight.")
        elif weight in pairs:
            problems.append(f"{weight} has two scales, {pairs[weight]} and {name}.")
        elif not _fits(info.shape, codes.shape):
            problems.append(
                f"{name} is {list(info.shape)} for a weight of {list(codes.shape)}; expected one number, or one per "
                "row."
            )
        else:
            pairs[weight] = name
    bare = [name for name, info in weights.items() if info.dtype in CODES and name not in pairs]
    if bare and not problems:
        problems.append(f"{bare[0]} is {weights[bare[0]].dtype} without a scale, but other weights have one.")
    return pairs, tuple(problems[:1])


def decode(name: str, codes: Tensor, scale: Tensor) -> Tensor:
    """The weight in bfloat16, rounded once. Raises PackForcingError for a scale that is not finite."""
    if not scale.isfinite().all():
        raise PackForcingError(f"The scale of {name} is infinite or NaN: the file is damaged. Download it again.")
    rows = scale.float() if scale.numel() == 1 else scale.float().reshape(-1, *[1] * (codes.dim() - 1))
    return (codes.float() * rows).to(torch.bfloat16).reshape(codes.shape)


def _fits(scale: tuple[int, ...], codes: tuple[int, ...]) -> bool:
    return math.prod(scale) == 1 or (bool(codes) and scale in ((codes[0],), (codes[0], *[1] * (len(codes) - 1))))
