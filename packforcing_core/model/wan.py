"""The Wan2.1 text-to-video transformer as a tree of modules with the official names.

It has no forward of its own: `model.causal.CausalWan` runs it, or any other network with these names.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import WanConfig
from .ops import Ops


class Attention(nn.Module):
    """The projections of one attention, and its full-width query and key norms."""

    def __init__(self, config: WanConfig, ops: Ops):
        super().__init__()
        dim = config.dim
        self.q = ops.Linear(dim, dim)
        self.k = ops.Linear(dim, dim)
        self.v = ops.Linear(dim, dim)
        self.o = ops.Linear(dim, dim)
        self.norm_q = ops.RMSNorm(dim, eps=config.eps)
        self.norm_k = ops.RMSNorm(dim, eps=config.eps)


class Layer(nn.Module):
    """One transformer layer (`blocks.N` in files): self-attention, cross-attention, feed-forward."""

    def __init__(self, config: WanConfig, ops: Ops):
        super().__init__()
        dim = config.dim
        self.norm1 = ops.LayerNorm(dim, eps=config.eps, elementwise_affine=False)
        self.self_attn = Attention(config, ops)
        self.norm3 = ops.LayerNorm(dim, eps=config.eps, elementwise_affine=True)
        self.cross_attn = Attention(config, ops)
        self.norm2 = ops.LayerNorm(dim, eps=config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            ops.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), ops.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)


class Head(nn.Module):
    """The last norm and the projection back to latent patches."""

    def __init__(self, config: WanConfig, ops: Ops):
        super().__init__()
        self.norm = ops.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = ops.Linear(config.dim, math.prod(config.patch_size) * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)


class Wan(nn.Module):
    """All weights of the transformer, with the official names."""

    def __init__(self, config: WanConfig, ops: Ops):
        super().__init__()
        dim = config.dim
        self.patch_embedding = ops.Conv3d(config.in_dim, dim, kernel_size=config.patch_size, stride=config.patch_size)
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), ops.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(ops.Linear(config.freq_dim, dim), nn.SiLU(), ops.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Layer(config, ops) for _ in range(config.num_layers))
        self.head = Head(config, ops)
