"""Networks spread over the ranks of a run by FSDP2: every rank keeps a part of each parameter, gradient and moment.

FSDP gathers a module's parameters in the hooks of its forward, but a Wan has none: `CausalWan` calls its submodules
from functions of its own. So each of those functions runs inside the hooks of the module that owns what it reads
(`inside`), tensors in and tensors out, and what a history does lies between them. A gradient that reaches a layer's
keys by way of a history therefore passes the hooks as well.

Parameters are gathered once a step, at their first use, and kept until it ends: a rollout goes through every layer
dozens of times. What is sharded for good are the master weights, the gradients and the optimiser's moments.
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
    """Spreads a Wan (per layer, then the rest), any other network with a forward, or a container of such networks.

    What has no forward, as a VAE, stays whole on every rank. One process alone changes nothing. On CUDA what is
    gathered is bfloat16, and gradients are summed in float32.
    """
    if ranks.ranks() == 1:
        return
    if isinstance(network, nn.ModuleDict | nn.ModuleList):
        for part in network.children():
            shard(part)
        return
    if not isinstance(network, Wan) and type(network).forward is nn.Module.forward:
        return
    # Views among what is handed out are no danger: nothing writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    for module in (*network.blocks, network) if isinstance(network, Wan) else (network,):
        fully_shard(module, reshard_after_forward=False, mp_policy=_precision(network))
        module.set_reshard_after_backward(False)
        module.inside = MethodType(_call, module)
        register_fsdp_forward_method(module, "inside")


def _precision(network: nn.Module) -> MixedPrecisionPolicy:
    if next(network.parameters()).device.type != "cuda":
        return MixedPrecisionPolicy()
    # Inputs stay as they are: timesteps and latents would lose what they say. Autocast casts at the products.
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _call(module: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    return function(module, *arguments)


def inside(module: object, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(module, *arguments)`, with the parameters of a sharded `module` gathered and their gradients summed."""
    if isinstance(module, FSDPModule):
        return vars(module)["inside"](function, *arguments)  # Put there by `shard`.
    return function(module, *arguments)


def reshard(network: nn.Module) -> None:
    """Lets go of all gathered parameters, which the next update makes stale."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered from all ranks (which all have to ask); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
