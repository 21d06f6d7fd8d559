"""The model calls of a block without cache and sampler, so that their cost can be measured as the difference."""

from __future__ import annotations

import torch
from torch import Tensor

from ...attention import Attention
from ...rope import Rotation, rotate
from ...sampler.denoising import frame_timesteps
from .subject import Stream


class StaticHistory:
    """A history that never changes: tokens attend to fixed keys and values, as many as in a render."""

    def __init__(self, k: Tensor, v: Tensor, rotation: Rotation, attention: Attention):
        self._k, self._v, self._rotation, self._attention = k, v, rotation, attention

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rotate(k, self._rotation)
        return self._attention(rotate(q, self._rotation), self._k, self._v)

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        rotate(k, self._rotation)


class BarePasses:
    """The model calls of one block of `stream` with a full window: the steps, the commit, the compression and its pass.
    No views, selection, writes, noise or checks; attention reads as many keys as in a render.
    """

    def __init__(self, stream: Stream):
        model, cache = stream.model, stream.cache
        shape, rope = cache.shape, cache.rope
        self._stream = stream
        self._schedule = stream.denoising.schedule
        self._latents = torch.randn(stream.recipe.geometry.block_shape).to(model.device)
        seen = shape.attended_tokens(cache.partitions)
        keys = torch.randn(2, shape.batch, seen, shape.heads, shape.head_dim).to(model.device, shape.dtype)
        frames = stream.recipe.geometry.frames_per_block
        self._block = StaticHistory(keys[0], keys[1], rope.frames(range(frames)), model.attention)
        self._twin: StaticHistory | None = None
        if cache.mid:
            recent = cache.partitions.recent_frames + frames
            seen_by_compressed = seen - recent * shape.tokens_per_frame + shape.compressed_tokens
            spatial, one = cache.mid.compressed_rope.rotation(0), keys[:, :, :seen_by_compressed]
            self._twin = StaticHistory(one[0], one[1], spatial, model.attention)

    @torch.no_grad()
    def block(self) -> None:
        model, text, latents = self._stream.model, self._stream.text, self._latents
        for timestep in self._schedule.timesteps:
            model.flow(latents, frame_timesteps(timestep, latents), text, self._block)
        model.commit(latents, frame_timesteps(0.0, latents), text, self._block)
        if self._twin:
            tokens = self._stream.compression.compressor.tokens(latents, None, False)
            model.commit_tokens(tokens, torch.zeros(tokens.shape[0], 1), text, self._twin)
