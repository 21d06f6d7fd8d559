"""The interface of a network: the attribute names of the official checkpoint, all callable.

Our own `Wan` has them, and so has the diffusion model inside a ComfyUI MODEL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

Call = Callable[[Tensor], Tensor]
"""A module from tensor to tensor."""


class Attention(Protocol):
    """The projections of a layer's attention, [B, L, D] -> [B, L, D] each."""

    q: Call
    k: Call
    v: Call
    o: Call
    norm_q: Call
    norm_k: Call


class CrossAttention(Attention, Protocol):
    """Attention to the text, which can also be called as a whole: a host may have replaced its forward (NAG)."""

    def __call__(self, x: Tensor, hidden: Tensor) -> Tensor: ...


class Layer(Protocol):
    """A layer; `modulation` is [1, 6, D]."""

    modulation: Tensor
    norm1: Call
    norm2: Call
    norm3: Call
    self_attn: Attention
    cross_attn: CrossAttention
    ffn: nn.Sequential


class Head(Protocol):
    """The projection from tokens to patches; `modulation` is [1, 2, D]."""

    modulation: Tensor
    norm: Call
    head: Call


class Network(Protocol):
    """The whole transformer."""

    patch_embedding: Call
    text_embedding: Call
    time_embedding: Call
    time_projection: Call
    blocks: Sequence[Layer]
    head: Head


def as_network(net: nn.Module) -> Network:
    """`net` with typed attributes; torch types them only as tensor or module."""
    return cast("Network", net)
