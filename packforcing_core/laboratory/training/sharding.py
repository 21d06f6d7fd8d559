"""Shards networks over the ranks of a run with FSDP2: every rank holds a part of each parameter, gradient and moment.

FSDP gathers a module's parameters in its forward hooks, but a Wan has no forward: `CausalWan` calls its submodules from
its own functions. So each of those functions runs inside the hooks of the module that owns the parameters (`inside`),
with tensors as inputs and outputs, and a history's operations lie between them. So a gradient that reaches a layer's
keys through a history also passes the hooks.

Parameters are gathered once per step, at their first use, and kept until its end, because a rollout runs every layer
dozens of times. Master weights, gradients and optimiser moments are always sharded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ...model.wan import Wan
from . import ranks

Result = TypeVar("Result")


def shard(network: nn.Module) -> None:
    """Shards a Wan (each layer, then the rest), any other network with a forward, or each network of a container.

    A network without a forward, such as a VAE, stays unsharded on every rank. With one rank nothing changes. On CUDA
    parameters are gathered in bfloat16, and gradients are reduced in float32.
    """
    if ranks.ranks() == 1:
        return
    if isinstance(network, nn.ModuleDict | nn.ModuleList):
        for part in network.children():
            shard(part)
        return
    if not isinstance(network, Wan) and type(network).forward is nn.Module.forward:
        return
    # Returned views are safe: nothing writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    for module in (*network.blocks, network) if isinstance(network, Wan) else (network,):
        fully_shard(module, reshard_after_forward=False, mp_policy=_precision(network))
        module.set_reshard_after_backward(False)
        module.inside = MethodType(_call, module)
        register_fsdp_forward_method(module, "inside")


def _precision(network: nn.Module) -> MixedPrecisionPolicy:
    if next(network.parameters()).device.type != "cuda":
        return MixedPrecisionPolicy()
    # Inputs are not cast: timesteps and latents would lose precision. Autocast casts them at the matrix products.
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _call(module: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    return function(module, *arguments)


def inside(module: object, function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls `function(module, *arguments)`. If `module` is sharded, its parameters are gathered, and their gradients
    reduced in the backward pass.
    """
    if isinstance(module, FSDPModule):
        return vars(module)["inside"](function, *arguments)  # Put there by `shard`.
    return function(module, *arguments)


def reshard(network: nn.Module) -> None:
    """Frees all gathered parameters, which the next update makes stale."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Returns a sharded tensor gathered from all ranks (all must call it), and any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
