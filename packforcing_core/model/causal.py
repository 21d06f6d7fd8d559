"""The causal forward pass: one block of latent frames that attends to a history.

`CausalWan` uses a network through the official attribute names and calls its modules, never their weights. So it works
with our own `Wan`, and with the diffusion model inside a ComfyUI MODEL, including everything that hosts attach to it
(LoRA, fp8, GGUF, offloading).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention, sdpa
from ..geometry import PATCH
from ..history import History, Writer
from ..kernels import fast
from ..queued import to_device
from .config import WanConfig
from .network import Layer, as_network
from .ops import TorchOps


class Modulation(NamedTuple):
    """The modulation by the timestep, per latent frame: `embedding` [B, F, 1, D], `shifts` [B, F, 6, D]."""

    embedding: Tensor
    shifts: Tensor


class TextKV(NamedTuple):
    """Cross-attention keys and values of one layer, [B, text_len, heads, head_dim] each.

    A layer whose cross-attention has a replaced forward (NAG) gets the embedded text `hidden` [B, text_len, D] instead.
    """

    k: Tensor
    v: Tensor
    hidden: Tensor | None = None


def sinusoidal_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """[N] timesteps in 0..1000 -> [N, channels] float32: cosines, then sines, of t / 10000^(2j/channels)."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = torch.outer(timesteps.float(), torch.pow(10000, -exponents))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def modulate(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """tokens [B, F x n, D] times (1 + scale) plus shift; scale and shift are [B, F, 1, D], per latent frame."""
    framed = tokens.unflatten(1, (scale.shape[1], -1))
    return fast.add_scaled(shift, framed, 1 + scale).flatten(1, 2)


def add_gated(tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """tokens + gate * update, with gate [B, F, 1, D] per latent frame."""
    frames = gate.shape[1]
    return fast.add_scaled(tokens.unflatten(1, (frames, -1)), update.unflatten(1, (frames, -1)), gate).flatten(1, 2)


class Seams(NamedTuple):
    """Parameters of the layers from outside: number of heads, and `cast` and `attention` of `CausalWan`."""

    heads: int
    cast: Callable[[Tensor, Tensor], Tensor]
    attention: Attention


def queries_keys_values(
    layer: Layer, tokens: Tensor, shifts: Tensor, seams: Seams
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The part of a layer before its self-attention: q, k (normalised, not rotated) and v [B, L, heads, head_dim], and
    the layer's own shifts [B, F, 6, D].
    """
    shifts = seams.cast(layer.modulation, tokens) + shifts
    shift, scale = (shifts[:, :, i].unsqueeze(2) for i in (0, 1))
    attn = layer.self_attn
    x = modulate(layer.norm1(tokens), scale, shift)
    projected = attn.norm_q(attn.q(x)), attn.norm_k(attn.k(x)), attn.v(x)
    q, k, v = (p.unflatten(-1, (seams.heads, -1)) for p in projected)
    return q, k, v, shifts


def after_attention(
    layer: Layer, tokens: Tensor, attended: Tensor, shifts: Tensor, text: TextKV, seams: Seams
) -> Tensor:
    """The part of a layer after its self-attention: tokens [B, L, D], self-attention output `attended` [B, L, heads,
    head_dim].
    """
    gate1, shift2, scale2, gate2 = (shifts[:, :, i].unsqueeze(2) for i in (2, 3, 4, 5))
    tokens = add_gated(tokens, layer.self_attn.o(attended.flatten(2)), gate1)
    cross, x = layer.cross_attn, layer.norm3(tokens)
    if text.hidden is not None:
        tokens = tokens + cross(x, text.hidden)
    else:
        q = cross.norm_q(cross.q(x)).unflatten(-1, (seams.heads, -1))
        tokens = tokens + cross.o(seams.attention(q, text.k, text.v).flatten(2))
    return add_gated(tokens, feed_forward(layer.ffn, modulate(layer.norm2(tokens), scale2, shift2)), gate2)


def feed_forward(ffn: nn.Sequential, x: Tensor) -> Tensor:
    """`ffn(x)`. On a GPU, GELU is fused into the first product if both are plain modules. After a host's own product,
    GELU runs in place, which saves a tensor of the hidden width (112 MB at 832x480 in blocks of 4).
    """
    if type(ffn) is not nn.Sequential or len(ffn) != 3 or torch.is_grad_enabled():
        return ffn(x)
    first, activation, second = ffn
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (ffn, first, activation))
    if hooked or type(activation) is not nn.GELU or activation.approximate != "tanh":
        return ffn(x)
    if type(first) is nn.Linear and first.bias is not None and first.weight.dtype == x.dtype and fast.serves(x):
        return second(fast.linear_gelu(x, first.weight, first.bias))
    return second(torch.ops.aten.gelu_(first(x), approximate="tanh"))


class CausalWan:
    """Runs blocks of latent frames through `net`.

    `dtype` is that of the activations. `cast` moves bare parameters to an activation's device and dtype. All attention
    goes through `attention`. `compiled` runs the layers through torch.compile, for networks of plain modules: one graph
    per half-layer and shape, for any number of layers and blocks.
    """

    def __init__(
        self,
        net: nn.Module,
        config: WanConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cast: Callable[[Tensor, Tensor], Tensor] = TorchOps.cast,
        attention: Attention = sdpa,
        compiled: bool = False,
    ):
        self.net = net
        self._net = as_network(net)
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.attention = attention
        self.compiled = compiled
        fast.usable(self.device)  # Tested here, not in the middle of a block or while a graph is traced.
        self._cast = cast
        # The history, between the two halves, stays eager: its slices grow until the window is full.
        self._before, self._after = queries_keys_values, after_attention
        if compiled:
            self._before = torch.compile(queries_keys_values, dynamic=False)
            self._after = torch.compile(after_attention, dynamic=False)

    def encode_text(self, context: Tensor) -> list[TextKV]:
        """Text embeddings [B, text_len, text_dim] -> the cross-attention keys and values of every layer; once per
        prompt.
        """
        hidden = self._text_hidden(context)
        return [self._text_kv(layer, hidden) for layer in self._net.blocks]

    def flow(self, latents: Tensor, timesteps: Tensor, text: list[TextKV], history: History) -> Tensor:
        """The flow (noise - x0) of a block: latents [B, 16, F, h, w] and timesteps [B, F] in 0..1000 -> [B, 16, F,
        h, w].
        """
        modulation = self._modulation(timesteps)
        return self._head(self._layers(self.embed(latents), modulation, text, history), modulation, latents.shape)

    def flow_behind(
        self, tokens: Tensor, latents: Tensor, timesteps: Tensor, text: list[TextKV], history: History
    ) -> Tensor:
        """`flow` of latents [B, 16, F, h, w] that follow hidden tokens [B, G x n, D] in one pass. Of the timesteps
        [B, G + F], the first G belong to the tokens, n tokens each.
        """
        modulation = self._modulation(timesteps)
        everything = torch.cat((tokens.to(self.device, self.dtype), self.embed(latents)), dim=1)
        hidden = self._layers(everything, modulation, text, history)[:, tokens.shape[1] :]
        own = Modulation(*(part[:, -latents.shape[2] :] for part in modulation))
        return self._head(hidden, own, latents.shape)

    def commit(self, latents: Tensor, timesteps: Tensor, text: list[TextKV], history: History) -> None:
        """A pass that only writes keys and values; `history` is a commit's writer.

        It ends with the last layer's keys and values if `history` is a `Writer`; otherwise the last layer attends too.
        """
        self._commit(self.embed(latents), self._modulation(timesteps), text, history)

    def embed(self, latents: Tensor) -> Tensor:
        """The patch embedding: latents [B, 16, F, h, w] -> tokens [B, F x n, D], in order of time, row, column."""
        tokens = rearrange(self.patches(latents).to(self.dtype), "b d f h w -> b (f h w) d")
        # Every sum of the layers keeps the strides of its first summand: without this copy all of them would read
        # tokens channel by channel, and each norm would copy them first.
        return tokens.contiguous()

    def patches(self, latents: Tensor) -> Tensor:
        """The patch embedding as a grid: latents [B, 16, F, h, w] -> [B, D, F, h/2, w/2]."""
        # It stays float32 in every host: in bfloat16, latents would lose precision before they are mixed.
        return self._net.patch_embedding(latents.to(self.device, torch.float32))

    def commit_tokens(self, tokens: Tensor, timesteps: Tensor, text: list[TextKV], history: History) -> None:
        """`commit` for hidden tokens [B, L, D] that are embedded already; timesteps [B, F], where F divides L."""
        self._commit(tokens.to(self.device, self.dtype), self._modulation(timesteps), text, history)

    def _text_hidden(self, context: Tensor) -> Tensor:
        return self._net.text_embedding(context.to(self.device, self.dtype))

    def _text_kv(self, layer: Layer, hidden: Tensor) -> TextKV:
        cross = layer.cross_attn
        replaced = "forward" in vars(cross)
        k, v = self._heads(cross.norm_k(cross.k(hidden))), self._heads(cross.v(hidden))
        return TextKV(k, v, hidden if replaced else None)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_heads, self.config.head_dim))

    def _modulation(self, timesteps: Tensor) -> Modulation:
        sinusoids = sinusoidal_embedding(timesteps.flatten(), self.config.freq_dim).to(self.dtype)
        embedding = self._net.time_embedding(to_device(sinusoids, self.device)).unflatten(0, timesteps.shape)
        shifts = self._net.time_projection(embedding).unflatten(-1, (6, self.config.dim))
        return Modulation(embedding.unsqueeze(2), shifts)

    @property
    def _seams(self) -> Seams:
        return Seams(self.config.num_heads, self._cast, self.attention)

    def _layers(self, tokens: Tensor, modulation: Modulation, text: list[TextKV], history: History) -> Tensor:
        seams = self._seams
        for index, (layer, text_kv) in enumerate(zip(self._net.blocks, text, strict=True)):
            tokens = self._layer(index, layer, tokens, modulation, text_kv, history, seams)
        return tokens

    def _layer(
        self,
        index: int,
        layer: Layer,
        tokens: Tensor,
        modulation: Modulation,
        text: TextKV,
        history: History,
        seams: Seams,
    ) -> Tensor:
        q, k, v, shifts = self._before(layer, tokens, modulation.shifts, seams)
        return self._after(layer, tokens, history.attend(index, q, k, v), shifts, text, seams)

    def _commit(self, tokens: Tensor, modulation: Modulation, text: list[TextKV], history: History) -> None:
        if not isinstance(history, Writer):
            self._layers(tokens, modulation, text, history)
            return
        seams, last = self._seams, len(text) - 1
        for index, (layer, text_kv) in enumerate(zip(self._net.blocks, text, strict=True)):
            if index < last:
                tokens = self._layer(index, layer, tokens, modulation, text_kv, history, seams)
            else:
                q, k, v, _ = self._before(layer, tokens, modulation.shifts, seams)
                history.keep(index, q, k, v)

    def _head(self, tokens: Tensor, modulation: Modulation, shape: torch.Size) -> Tensor:
        head = self._net.head
        shifts = self._cast(head.modulation, tokens) + modulation.embedding
        shift, scale = shifts.unsqueeze(3).unbind(2)
        patches = head.head(modulate(head.norm(tokens), scale, shift))
        frames, rows, columns = shape[2], shape[3] // PATCH, shape[4] // PATCH
        return rearrange(
            patches, "b (f h w) (p q c) -> b c f (h p) (w q)", f=frames, h=rows, w=columns, p=PATCH, q=PATCH
        ).float()
