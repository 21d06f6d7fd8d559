"""Loads a Wan VAE from a file or a state dict, and refuses one that does not fit exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.files import open_tensors
from ..errors import PackForcingError
from ..model.ops import Ops, TorchOps, build_on_meta
from .config import EXPECTED, VAEConfig
from .wan_vae import WanVAE


def load_vae(
    source: str | Path | Mapping[str, Tensor],
    ops: Ops = TorchOps,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> WanVAE:
    """The VAE with the weights of `source`: a .safetensors, .pt or .pth file, or a state dict.

    Weights are assigned, not copied: tensors of a state dict stay shared with their owner if `device` and `dtype`
    (None: unchanged) match. An exception are convolution weights on a CUDA device, which are copied to another memory
    layout. Raises PackForcingError for another kind of VAE, and for keys or shapes that do not match exactly.
    """
    state_dict = source if isinstance(source, Mapping) else _read(Path(source))
    config = VAEConfig.from_state_dict(state_dict)
    vae = build_on_meta(lambda: WanVAE(config, ops))
    _require_exact_keys(vae.state_dict(), state_dict)
    weights = {name: tensor.detach().to(device=device, dtype=dtype) for name, tensor in state_dict.items()}
    vae.load_state_dict(weights, assign=True)
    return channels_last(vae.requires_grad_(False).eval())


def channels_last(vae: WanVAE) -> WanVAE:
    """`vae` with its convolution weights on a CUDA device in the memory layout of its activations, as private
    copies.
    """
    for module in vae.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.is_cuda and weight.ndim in (4, 5):
            layout = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
            made = weight.detach().contiguous(memory_format=layout)
            module._parameters["weight"] = nn.Parameter(made, requires_grad=weight.requires_grad)
    return vae


def _read(path: Path) -> dict[str, Tensor]:
    file = open_tensors(path)
    return file.load(file.tensors)


def _require_exact_keys(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} is {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise PackForcingError(f"The VAE does not fit: {'; '.join(problems[:5])}{more}; {EXPECTED}.")
