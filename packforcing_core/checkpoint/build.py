"""Builds a runnable transformer from a checkpoint."""

from __future__ import annotations

import torch

from ..attention import Attention, sdpa
from ..model.causal import CausalWan
from ..model.ops import TorchOps, build_on_meta
from ..model.wan import Wan
from .load import Checkpoint


def build_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    attention: Attention = sdpa,
    compiled: bool = False,
) -> CausalWan:
    """The transformer with the checkpoint's weights on `device` in `dtype`; its patch embedding stays float32."""
    net = build_on_meta(lambda: Wan(checkpoint.config, TorchOps))
    # Cast one by one: a cast of the whole module would round the patch embedding to `dtype`.
    cast = {
        name: tensor.to(device, torch.float32 if name.startswith("patch_embedding.") else dtype)
        for name, tensor in checkpoint.state_dict.items()
    }
    net.load_state_dict(cast, assign=True)
    net = net.eval().requires_grad_(False)
    return CausalWan(net, checkpoint.config, dtype=dtype, device=device, attention=attention, compiled=compiled)
