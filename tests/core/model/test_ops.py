from __future__ import annotations

import torch
from torch import nn

from packforcing_core.model.ops import TorchOps, build_on_meta
from packforcing_core.model.wan import Wan
from tests.small import CONFIG


class Ours:
    """Another host's classes, recognisable."""

    class Linear(nn.Linear):
        pass

    class Conv2d(nn.Conv2d):
        pass

    class Conv3d(nn.Conv3d):
        pass

    class LayerNorm(nn.LayerNorm):
        pass

    class RMSNorm(nn.RMSNorm):
        pass

    cast = TorchOps.cast


def test_a_host_that_brings_classes_finds_every_weight_in_them():
    net = Wan(CONFIG, Ours)
    own = (Ours.Linear, Ours.Conv3d, Ours.LayerNorm, Ours.RMSNorm)
    bare = {
        f"{name}.{parameter}"
        for name, module in net.named_modules()
        for parameter, _ in module.named_parameters(recurse=False)
        if not isinstance(module, own)
    }
    assert bare == {"head.modulation", *(f"blocks.{layer}.modulation" for layer in range(CONFIG.num_layers))}


def test_cast_follows_dtype_and_keeps_what_fits():
    parameter = nn.Parameter(torch.randn(3))
    assert TorchOps.cast(parameter, torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert TorchOps.cast(parameter, torch.empty(0)) is parameter


def test_on_meta_nothing_is_allocated():
    net = build_on_meta(lambda: Wan(CONFIG, TorchOps))
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert torch.empty(0).device.type == "cpu"
