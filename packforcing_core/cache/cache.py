"""The key/value cache of a render: one view to read per block, one commit to write.

    cache = KVCache(partitions, shape, rope, attention, device)
    view = cache.begin_block()            # this block's window
    flow = model.flow(x, ..., view)       # denoising steps read through the view
    with cache.commit(view) as writer:    # the clean block's keys and values become the past
        model.commit(x0, ..., writer)

Both a view and a writer are a `History`: a model pass cannot tell them apart, and reading cannot change the past.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..attention import Attention
from ..errors import PackForcingError
from ..rope import GridRope, Rotation, rotate
from .layer_kv import KVShape, LayerKV
from .partitions import BlockWindow, Partitions


class History(Protocol):
    """What attention sees of the past, as a model pass holds it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the current block over the past and itself.

        `q`, `k` (normalised, not rotated) and `v` are [B, L, heads, head_dim] of the current block; returns the same
        shape.
        """
        ...


class KVCache:
    """Preallocated keys and values of all layers, executing one `Partitions` plan."""

    def __init__(
        self,
        partitions: Partitions,
        shape: KVShape,
        rope: GridRope,
        attention: Attention,
        device: torch.device | str = "cpu",
    ):
        self.partitions = partitions
        self.shape = shape
        self.rope = rope
        self.attention = attention
        self.layers = [LayerKV(shape, partitions, device) for _ in range(shape.layers)]
        self.committed_frames = 0
        self._position_of_slot: dict[int, int] = {}
        self._torn = False

    @property
    def nbytes(self) -> int:
        """Bytes allocated, equal to `shape.buffer_bytes(partitions)`."""
        return sum(layer.nbytes for layer in self.layers)

    def begin_block(self) -> BlockView:
        """The view of the next block. Frames whose position moved are rotated afresh from their unrotated keys."""
        if self._torn:
            raise PackForcingError(
                "A commit was interrupted half way, so the cache no longer matches any block. "
                "Start a new cache and commit the finished blocks again."
            )
        window = self.partitions.window(self.committed_frames)
        for placement in window.past:
            if self._position_of_slot[placement.slot] != placement.position:
                self._move(placement.slot, placement.position)
        return BlockView(self, window)

    def _move(self, slot: int, position: int) -> None:
        rotation = self.rope.frames([position])
        for layer in self.layers:
            layer.k[:, layer.tokens(slot)] = rotate(layer.unrotated_k(slot), rotation)
        self._position_of_slot[slot] = position

    @contextmanager
    def commit(self, view: BlockView) -> Iterator[BlockWriter]:
        """A writer for the pass over the clean block of `view`; the block counts as past when the pass has ended
        well.
        """
        writer = BlockWriter(view)
        self._torn = True
        yield writer
        self._torn = False
        self._position_of_slot.update((kept.slot, kept.position) for kept in writer.kept)
        self.committed_frames += self.partitions.frames_per_block


class BlockView:
    """One block's window on the cache, for the denoising steps: only the current block's own slots are rewritten."""

    def __init__(self, cache: KVCache, window: BlockWindow):
        self.cache = cache
        self.window = window
        self.rotation = cache.rope.frames(window.current_positions)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv = self.cache.layers[layer]
        frames_per_block = self.cache.partitions.frames_per_block
        current = kv.tokens(self.window.current_slot, frames_per_block)
        attended = kv.tokens(0, self.window.current_slot + frames_per_block)
        kv.k[:, current] = rotate(k, self.rotation)
        kv.v[:, current] = v
        return self.cache.attention(rotate(q, self.rotation), kv.k[:, attended], kv.v[:, attended])


class BlockWriter:
    """A view that also keeps the block: after a layer has attended, its keys and values take their slots of the past.

    Writing layer by layer needs no second copy of the block, and what is overwritten is out of view from here on.
    """

    def __init__(self, view: BlockView):
        self._view = view
        self._cache = view.cache
        partitions = self._cache.partitions
        first = self._cache.committed_frames
        following = partitions.window(first + partitions.frames_per_block)
        self.kept = [placement for placement in following.past if placement.frame >= first]
        self._rotations: dict[int, Rotation] = {
            kept.slot: self._cache.rope.frames([kept.position]) for kept in self.kept
        }
        self._first = first

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = self._view.attend(layer, q, k, v)
        kv = self._cache.layers[layer]
        for kept in self.kept:
            rows = kv.tokens(kept.frame - self._first)
            kv.k[:, kv.tokens(kept.slot)] = rotate(k[:, rows], self._rotations[kept.slot])
            kv.v[:, kv.tokens(kept.slot)] = v[:, rows]
            if self._cache.partitions.unrotated_frames and kept.slot >= self._cache.partitions.sink_frames:
                kv.unrotated_k(kept.slot).copy_(k[:, rows])
        return out
