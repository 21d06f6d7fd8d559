"""Wan without a cache: one pass over a whole clip with a block-causal mask, written as plainly as possible."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from packforcing_core.model.config import WanConfig
from tests.exactness import in_float64


def rope(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """x [B, L, heads, d], positions [L, 3] (time, row, column): complex rotation in float64."""
    d = x.shape[-1]
    widths = (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6))
    angles = torch.cat(
        [
            positions[:, axis : axis + 1].double() / theta ** (torch.arange(0, w, 2, dtype=torch.float64) / w)
            for axis, w in enumerate(widths)
        ],
        dim=1,
    )
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[B, L, heads, d] each, computed in float64; mask [Lq, Lk] is True where a query may look."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.double()).to(v.dtype)


def grid_positions(frame_positions: list[float], grid: tuple[int, int]) -> Tensor:
    """[frames x rows x columns, 3] positions of tokens in reading order."""
    return torch.tensor(
        [(t, r, c) for t in frame_positions for r in range(grid[0]) for c in range(grid[1])], dtype=torch.float64
    )


def forward(
    net: torch.nn.Module,
    config: WanConfig,
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    positions: Tensor,
    mask: Tensor,
) -> Tensor:
    """Flow [B, 16, F, h, w] of latents [B, 16, F, h, w] at timesteps [B, F] per frame, under `mask` [L, L], all of it
    in float64.
    """
    net, latents, context = in_float64(net), latents.double(), context.double()
    b, _, frames, h, w = latents.shape
    n = (h // 2) * (w // 2)
    x = net.patch_embedding(latents).flatten(2).transpose(1, 2)
    half = config.freq_dim // 2
    angles = timesteps.flatten()[:, None].double() * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    e = net.time_embedding(torch.cat((angles.cos(), angles.sin()), 1)).reshape(b, frames, -1)
    e6 = net.time_projection(e).reshape(b, frames, 6, config.dim).repeat_interleave(n, dim=1)
    text = net.text_embedding(context)
    everything = torch.ones(x.shape[1], text.shape[1], dtype=torch.bool)

    def heads(y: Tensor) -> Tensor:
        return y.reshape(b, -1, config.num_heads, config.head_dim)

    for layer in net.blocks:
        m = [(layer.modulation[:, None, i] + e6[:, :, i]) for i in range(6)]
        y = layer.norm1(x) * (1 + m[1]) + m[0]
        a = layer.self_attn
        q, k, v = heads(a.norm_q(a.q(y))), heads(a.norm_k(a.k(y))), heads(a.v(y))
        out = masked_attention(rope(q, positions), rope(k, positions), v, mask)
        x = x + a.o(out.flatten(2)) * m[2]
        c = layer.cross_attn
        q, k, v = heads(c.norm_q(c.q(layer.norm3(x)))), heads(c.norm_k(c.k(text))), heads(c.v(text))
        x = x + c.o(masked_attention(q, k, v, everything).flatten(2))
        y = layer.norm2(x) * (1 + m[4]) + m[3]
        x = x + layer.ffn(y) * m[5]

    e2 = net.head.modulation[:, None] + e.repeat_interleave(n, dim=1)[:, :, None]
    x = net.head.head(net.head.norm(x) * (1 + e2[:, :, 1]) + e2[:, :, 0])
    x = x.reshape(b, frames, h // 2, w // 2, 2, 2, config.out_dim)
    return torch.einsum("bfhwpqc->bcfhpwq", x).reshape(b, config.out_dim, frames, h, w)


def block_causal_mask(blocks: int, tokens_per_block: int) -> Tensor:
    """[L, L]: a token sees its own block and all before it."""
    block = torch.arange(blocks * tokens_per_block) // tokens_per_block
    return block[:, None] >= block[None, :]
