"""The tensors of one layer of the cache, and their sizes in bytes. It holds no policy: the caller names the slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..rope import Rotation, rotate, rotate_into
from .bank import CompressedShape
from .few_bits import Rows, row_bytes
from .moments import FLOAT_BYTES, moments_bytes
from .partitions import BlockWindow, Part, Partitions


@dataclass(frozen=True)
class KVShape:
    """The sizes of keys and values in a cache. `dtype` is the dtype in which they are stored.

    `compressed_tokens` is the number of tokens in a compressed block; only plans with a bank read it.
    """

    layers: int
    heads: int
    head_dim: int
    tokens_per_frame: int
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1
    compressed_tokens: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of the key (or of the value) of one token in all layers."""
        return self.layers * self.batch * self.heads * self.head_dim * self.dtype.itemsize

    @property
    def frame_bytes(self) -> int:
        """Bytes of the keys (or of the values) of one latent frame in all layers."""
        return self.tokens_per_frame * self.row_bytes

    @property
    def compressed(self) -> CompressedShape:
        """The shape of one layer's compressed block. Raises PackForcingError if `compressed_tokens` is not set."""
        if self.compressed_tokens < 1:
            raise PackForcingError(
                f"compressed_tokens is {self.compressed_tokens}, but this policy keeps compressed blocks. "
                "Give KVShape the compressed grid's tokens (geometry.VideoGeometry.compressed_tokens)."
            )
        return CompressedShape(self.batch, self.compressed_tokens, self.heads, self.head_dim, self.dtype)

    def attended_tokens(self, partitions: Partitions) -> int:
        """Tokens that a denoising pass attends to when all slots are full, including its own blocks."""
        p = partitions
        frames = p.sink_frames + p.extra_frames + p.rolling_recent_frames + p.current_frames
        return frames * self.tokens_per_frame + self._mid_tokens(p)

    def buffer_tokens(self, partitions: Partitions) -> int:
        """Token rows in the buffer that attention reads: the past, copies, and the current blocks."""
        frames = partitions.copied_frames + partitions.current_frames
        return self._past_tokens(partitions) + frames * self.tokens_per_frame

    def _past_tokens(self, partitions: Partitions) -> int:
        return partitions.past_frames * self.tokens_per_frame + self._mid_tokens(partitions)

    def _mid_tokens(self, partitions: Partitions) -> int:
        return partitions.top_k_blocks * self.compressed.tokens if partitions.bank else 0

    def cache_bytes(self, partitions: Partitions) -> int:
        """Bytes of the stored past when all slots are full: what a pass attends to, or selects from."""
        tokens: dict[Part, int] = {
            "sink": partitions.sink_frames * self.tokens_per_frame,
            "mid": self._mid_tokens(partitions),
            "recent": partitions.ring_frames * self.tokens_per_frame,
        }
        heads = 2 * self.layers * self.batch * self.heads
        return heads * sum(
            count * row_bytes(self.head_dim, self.dtype, partitions.bits_of(part)) for part, count in tokens.items()
        )

    def bank_bytes(self, partitions: Partitions) -> int:
        """Bytes of the bank: compressed blocks and their mean keys, in VRAM or in system RAM."""
        return self._compressed_bytes(partitions) + self._mean_key_bytes(partitions)

    def host_bytes(self, partitions: Partitions) -> int:
        """The part of `bank_bytes` that is in system RAM."""
        return self._compressed_bytes(partitions) if partitions.bank_on_host else 0

    def buffer_bytes(self, partitions: Partitions) -> int:
        """All bytes that a cache allocates on its device: the attended buffer with the current blocks, keys without
        rotation, what selection needs, and the bank if it is in VRAM. With quantised parts, all layers share one
        attended buffer.
        """
        attended = 2 * self.row_bytes * self.buffer_tokens(partitions)
        bank = self.bank_bytes(partitions) - self.host_bytes(partitions)
        beside = self._choice_bytes(partitions) + bank
        if partitions.rule:
            beside += partitions.rule.extra_bytes(self, partitions)
        if partitions.packed:
            return attended // self.layers + self.cache_bytes(partitions) + beside
        frames = partitions.unrotated_frames + partitions.candidate_frames
        return attended + self.frame_bytes * frames + beside + self._resident_bytes(partitions)

    def _choice_bytes(self, partitions: Partitions) -> int:
        """Bytes for selection from the bank and for alignment of new blocks, without the bank's mean keys."""
        row = self.batch * self.heads * self.head_dim * FLOAT_BYTES
        sums = self.layers * row * (partitions.query_frames + (partitions.bank is not None))
        if not (partitions.bank and partitions.bank.alignment):
            return sums
        places = partitions.bank.bank_blocks + partitions.sink_frames
        return sums + self.layers * moments_bytes(places, self.batch, self.heads, self.head_dim)

    def _compressed_bytes(self, partitions: Partitions) -> int:
        plan = partitions.bank
        return self.layers * plan.bank_blocks * self.compressed.stored_bytes(plan.bank_storage) if plan else 0

    def _mean_key_bytes(self, partitions: Partitions) -> int:
        plan = partitions.bank
        means = self.layers * self.batch * self.heads * self.head_dim * FLOAT_BYTES
        return means * plan.bank_blocks if plan else 0

    def _resident_bytes(self, partitions: Partitions) -> int:
        """Bytes of the selected blocks' keys, which stay on the device if the bank is in system RAM."""
        return self.row_bytes * self._mid_tokens(partitions) if partitions.bank_on_host else 0


class RowLayout:
    """Where the slots of a plan are in a buffer of token rows; `partitions` describes the order."""

    def __init__(self, shape: KVShape, partitions: Partitions):
        self.tokens_per_frame = shape.tokens_per_frame
        self._compressed_tokens = shape.compressed.tokens if partitions.bank else 0
        self._mid_tokens = self._compressed_tokens * partitions.top_k_blocks
        self._past_frames = partitions.past_frames
        self._ring_frames = partitions.ring_frames

    def tokens(self, slot: int, frames: int = 1) -> slice:
        """The token rows of `frames` slots from `slot` on."""
        return slice(slot * self.tokens_per_frame, (slot + frames) * self.tokens_per_frame)

    def mid(self, slot: int, slots: int = 1) -> slice:
        """The token rows of `slots` mid slots from mid slot `slot` on."""
        first = self._past_frames * self.tokens_per_frame + slot * self._compressed_tokens
        return slice(first, first + slots * self._compressed_tokens)

    def copy(self, window: BlockWindow, index: int) -> slice:
        """The token rows of the copied frame `index` of `window`."""
        first = self.mid(len(window.mid_positions)).start + index * self.tokens_per_frame
        return slice(first, first + self.tokens_per_frame)

    def current(self, window: BlockWindow) -> slice:
        """The token rows of the current block or blocks."""
        first = self.copy(window, len(window.copied)).start
        return slice(first, first + len(window.current_positions) * self.tokens_per_frame)

    def attended(self, window: BlockWindow) -> slice:
        """The token rows that the current blocks attend to; their own rows are the last."""
        return slice(self.tokens(self._past_frames - window.past_frames).start, self.current(window).stop)

    def attended_by_compressed(self, mid_blocks: int) -> slice:
        """The rows that a compressed block attends to: sink, `mid_blocks` mid slots, and its own rows, which are the
        last.
        """
        return slice(self.tokens(self._ring_frames).start, self.mid(mid_blocks).stop)

    def candidates(self, first: int, frames: int, device: torch.device | str) -> Tensor:
        """Token rows of the frames `first`, `first` + 1, ... after the sink, in that order. The ring's slots run from
        right to left.
        """
        n = self.tokens_per_frame
        index = torch.arange(first * n, (first + frames) * n, device=device)
        return (self._ring_frames - 1 - index // n) * n + index % n


class LayerKV(RowLayout):
    """Keys and values of one layer: `k`, `v` [B, tokens, heads, head_dim], laid out as `partitions` describes.

    `k` is rotated for its present position. Keys that may change position are also stored as `timeless_k`, rotated by
    height and width but not by time: a key is always rotated once, from there. `candidate_v` holds the values of tokens
    that can be selected. Both are indexed by frame slot. `query_sums` [B, frames, heads, head_dim] are float32 sums of
    a frame's queries, rotated like `timeless_k`.
    """

    def __init__(self, shape: KVShape, partitions: Partitions, device: torch.device | str):
        def allocate(tokens: int, dtype: torch.dtype = shape.dtype) -> Tensor:
            return torch.zeros(shape.batch, tokens, shape.heads, shape.head_dim, dtype=dtype, device=device)

        super().__init__(shape, partitions)
        n = shape.tokens_per_frame
        self.k = allocate(shape.buffer_tokens(partitions))
        self.v = allocate(shape.buffer_tokens(partitions))
        self.timeless_k = allocate(partitions.unrotated_frames * n)
        self.candidate_v = allocate(partitions.candidate_frames * n)
        self.query_sums = allocate(partitions.query_frames, torch.float32)

    @property
    def nbytes(self) -> int:
        tensors = (self.k, self.v, self.timeless_k, self.candidate_v, self.query_sums)
        return sum(tensor.nbytes for tensor in tensors)

    def move(self, slot: int, rotation: Rotation) -> None:
        """Re-rotates a frame of the ring to the position that `rotation` in time gives."""
        rows = self.tokens(slot)
        rotate_into(self.k[:, rows], self.timeless_k[:, rows], rotation)

    def show_copy(self, window: BlockWindow, index: int, rotation: Rotation | None) -> None:
        """Copies a frame of the ring in front of the current blocks too, rotated by `rotation` in time or unchanged."""
        source, target = self.tokens(window.copied[index].slot), self.copy(window, index)
        if rotation is None:
            self.k[:, target] = self.k[:, source]
        else:
            rotate_into(self.k[:, target], self.timeless_k[:, source], rotation)
        self.v[:, target] = self.v[:, source]

    def put_frame(self, slot: int, timeless: Tensor, v: Tensor, rotation: Rotation) -> None:
        """Stores a frame: values, and keys `timeless` [B, tokens, heads, head_dim], which are read rotated by
        `rotation` in time.
        """
        rows = self.tokens(slot)
        rotate_into(self.k[:, rows], timeless, rotation)
        self.v[:, rows] = v
        if slot < self._ring_frames:
            if self.timeless_k.shape[1]:
                self.timeless_k[:, rows] = timeless
            if self.candidate_v.shape[1]:
                self.candidate_v[:, rows] = v

    def seen(self, window: BlockWindow) -> tuple[Tensor, Tensor]:
        """The keys and values that a pass attends to, [B, attended, heads, head_dim]. The caller fills in the last
        rows, which are its own.
        """
        rows = self.attended(window)
        return self.k[:, rows], self.v[:, rows]

    def seen_by_compressed(self, mid_blocks: int) -> tuple[Tensor, Tensor]:
        """The same for a compressed block that follows `mid_blocks` mid slots."""
        rows = self.attended_by_compressed(mid_blocks)
        return self.k[:, rows], self.v[:, rows]

    def timeless_keys(self, rows: Rows) -> Tensor:
        """Keys in the ring without their rotation in time."""
        return self.timeless_k[:, rows]

    def ring_values(self, rows: Rows) -> Tensor:
        """Values in the ring, as stored."""
        return (self.candidate_v if self.candidate_v.shape[1] else self.v)[:, rows]

    def show_tokens(self, target: Tensor, source: Tensor, rotation: Rotation) -> None:
        """Copies the ring's rows `source`, rotated by `rotation` in time, to the rows `target`; the ring stays
        unchanged.
        """
        self.k[:, target] = rotate(self.timeless_k[:, source], rotation)
        self.v[:, target] = self.candidate_v[:, source]

    def show_changed(self, target: Tensor, rotation: Rotation, made: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Replaces the keys (given without rotation in time) and values that `show_tokens` put at the rows `target`."""
        keys, values = made()
        self.k[:, target] = rotate(keys, rotation)
        self.v[:, target] = values

    def rewrite(self, rows: Tensor, timeless: Tensor, v: Tensor) -> None:
        """Replaces stored keys and values at these rows of the ring; what attention reads stays."""
        self.timeless_k[:, rows] = timeless
        self.candidate_v[:, rows] = v

    def keep_tokens(self, target: Tensor, source: Tensor) -> None:
        """Overwrites the ring's rows `target` with its rows `source`."""
        for store in (self.timeless_k, self.candidate_v):
            store[:, target] = store[:, source]


def ring_slices(first: int, count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """The slots of frames `first`, `first` + 1, ... in a ring of `size` slots (frame % size), as at most two ranges,
    each with the range of the `count` frames in it. They are ranges because a list of slots would have to be copied to
    the device.
    """
    done = 0
    while done < count:
        slot = (first + done) % size
        length = min(count - done, size - slot)
        yield slice(slot, slot + length), slice(done, done + length)
        done += length
