"""Rolling Sink (arXiv 2602.07775): the newest block, and the first window's frames in place of all older frames.

With W frames in view, blocks of B frames and R = W - B: when a block that begins at frame c >= W is committed, the
block before it is overwritten. Frame f then shows frame f mod R of the video if f // R is even, and R - 1 - f mod R if
it is odd, at its own position. So drifted frames are in view for one block only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...rope import GridRope
from ..few_bits import TokenRows, row_bytes
from ..layer_kv import KVShape
from ..partitions import Partitions, Rewriting
from ..policy import TRAINED_FRAMES, Policy, int8_knob, knob
from ..rule import KV, Past, Rule
from .window import window_partitions


@dataclass(frozen=True)
class RollingSink(Policy):
    name = "rolling_sink"
    title = "Rolling Sink"
    keeps = "the newest block, and the frames of the first window in a forward and backward loop"

    window_frames: int = knob(TRAINED_FRAMES, "Latent frames in view, the current block included.", minimum=1)
    kv_int8: str = int8_knob()

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        self.block_by_block(current_blocks, "overwrites a block when the next one is finished")
        sizes = self.window_frames, 0
        plan = window_partitions(self, *sizes, "video", self.kv_int8, frames_per_block, current_blocks)
        return replace(plan, rewriting=FirstWindow())


@dataclass(frozen=True)
class FirstWindow(Rewriting):
    """Stores a copy of the first window's frames."""

    def needed(self, partitions: Partitions, past_frames: int) -> bool:
        return past_frames > partitions.recent_frames + partitions.frames_per_block

    def extra_bytes(self, shape: KVShape, partitions: Partitions) -> int:
        heads = 2 * shape.layers * shape.batch * shape.heads * shape.tokens_per_frame * partitions.recent_frames
        return heads * row_bytes(shape.head_dim, shape.dtype, partitions.bits_of("recent"))

    def build(self, partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device) -> Walk:
        return Walk(partitions, shape, rope, device)


def shown_frame(frame: int, length: int) -> int:
    """The frame of the first `length` frames that replaces `frame`: forward, backward, forward ..."""
    turn, place = divmod(frame, length)
    return place if turn % 2 == 0 else length - 1 - place


class Walk(Rule):
    """Keys (rotated by height and width only) and values of the first window's frames, for each layer."""

    def __init__(self, partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device):
        self._rope, self._partitions = rope, partitions
        self._length = partitions.recent_frames
        sizes = (shape.batch, self._length * shape.tokens_per_frame, shape.heads, shape.head_dim)
        bits = partitions.bits_of("recent")
        self._keys = [TokenRows(sizes, shape.dtype, bits, device) for _ in range(shape.layers)]
        self._values = [TokenRows(sizes, shape.dtype, bits, device) for _ in range(shape.layers)]

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in (*self._keys, *self._values))

    def store(self, layer: int, kv: KV, first: int, following: Past, timeless: Tensor, v: Tensor) -> None:
        frames = min(self._length - first, self._partitions.frames_per_block)
        if frames > 0:
            rows = kv.tokens(first, frames)
            count = frames * kv.tokens_per_frame
            self._keys[layer].write(rows, timeless[:, :count])
            self._values[layer].write(rows, v[:, :count])

    def stored(self, layer: int, kv: KV, first: int, following: Past) -> None:
        block = self._partitions.frames_per_block
        if first < self._length + block:
            return
        for placement in following:
            if first - block <= placement.frame < first:
                rows = kv.tokens(shown_frame(placement.frame, self._length))
                rotation = self._rope.frame_times([placement.position])
                kv.put_frame(placement.slot, self._keys[layer].read(rows), self._values[layer].read(rows), rotation)
