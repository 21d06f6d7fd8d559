"""The tensors of one layer of the cache. No policy lives here: the caller says which slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .partitions import Partitions


@dataclass(frozen=True)
class KVShape:
    """What a cache must hold keys and values for. `dtype` is that of the stored keys and values."""

    layers: int
    heads: int
    head_dim: int
    tokens_per_frame: int
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of the keys (or of the values) of one latent frame in all layers."""
        row = self.heads * self.head_dim * self.dtype.itemsize
        return self.layers * self.batch * self.tokens_per_frame * row

    def cache_bytes(self, partitions: Partitions) -> int:
        """Bytes of what is kept of the past and attended, once all slots are full."""
        return 2 * self.frame_bytes * partitions.past_frames

    def buffer_bytes(self, partitions: Partitions) -> int:
        """All bytes that a cache allocates, the current block and unrotated keys included."""
        return self.frame_bytes * (2 * partitions.buffer_frames + partitions.unrotated_frames)


class LayerKV:
    """Keys and values of one layer, a slot per latent frame: `k`, `v` [B, slots x tokens_per_frame, heads, head_dim].

    `k` is rotated for the position at which it is read now; `unrotated_k` keeps the recent frames' keys as the
    network made them, so that a moved frame is rotated afresh and never twice.
    """

    def __init__(self, shape: KVShape, partitions: Partitions, device: torch.device | str):
        def allocate(frames: int) -> Tensor:
            tokens = frames * shape.tokens_per_frame
            return torch.zeros(shape.batch, tokens, shape.heads, shape.head_dim, dtype=shape.dtype, device=device)

        self._tokens_per_frame = shape.tokens_per_frame
        self._first_recent = partitions.sink_frames
        self.k = allocate(partitions.buffer_frames)
        self.v = allocate(partitions.buffer_frames)
        self._unrotated_k = allocate(partitions.unrotated_frames)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes + self._unrotated_k.nbytes

    def tokens(self, slot: int, frames: int = 1) -> slice:
        """The token rows of `frames` slots from `slot` on."""
        return slice(slot * self._tokens_per_frame, (slot + frames) * self._tokens_per_frame)

    def unrotated_k(self, slot: int) -> Tensor:
        """The unrotated keys of the recent frame in `slot` (a view)."""
        return self._unrotated_k[:, self.tokens(slot - self._first_recent)]
