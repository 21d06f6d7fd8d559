"""MemRoPE (arXiv 2603.12513): sink, recent frames, and between them running averages of all older frames.

Keys are averaged without their rotation in time, token by token: m = (1 - rate) m + rate x for each frame x that leaves
the recent ones, in order, starting with m = the first. A slow average keeps what is permanent, a fast one what was
recent. Averages are float32: bfloat16 would round a change of one hundredth away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...rope import GridRope
from ..layer_kv import KVShape
from ..moments import FLOAT_BYTES
from ..partitions import PRUNED, Partitions, Rewriting
from ..policy import Policy, int8_knob, knob, packing
from ..rule import KV, Past, Rule


@dataclass(frozen=True)
class MemRoPE(Policy):
    name = "mem_rope"
    title = "MemRoPE"
    keeps = "a small sink, the newest frames, and two frames that average everything in between"

    sink_frames: int = knob(3, "The first latent frames, always in view.")
    recent_frames: int = knob(4, "The newest latent frames; sink and current block not included.", minimum=1)
    slow_rate: float = knob(
        0.01,
        "How much each frame that leaves the recent ones counts in the slow average.",
        maximum=1,
        advanced=True,
    )
    fast_rate: float = knob(
        0.1,
        "How much each frame that leaves the recent ones counts in the fast average.",
        maximum=1,
        advanced=True,
    )
    kv_int8: str = int8_knob("sink", "recent")

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        self.block_by_block(current_blocks, "averages frames as blocks are finished")
        return Partitions(
            *(frames_per_block, self.sink_frames, self.recent_frames, "window"),
            rewriting=Averages((self.slow_rate, self.fast_rate)),
            **packing(self.kv_int8),
        )


@dataclass(frozen=True)
class Averages(Rewriting):
    """One frame per rate, in view from the first block after a frame has left the recent ones."""

    rates: tuple[float, ...]

    @property
    def extra_frames(self) -> int:
        return len(self.rates)

    def needed(self, partitions: Partitions, past_frames: int) -> bool:
        return past_frames > partitions.sink_frames + partitions.recent_frames

    def extra_bytes(self, shape: KVShape, partitions: Partitions) -> int:
        return 2 * len(self.rates) * shape.frame_bytes // shape.dtype.itemsize * FLOAT_BYTES

    def build(self, partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device) -> RunningAverages:
        return RunningAverages(self.rates, partitions, shape, rope, device)


class RunningAverages(Rule):
    """The averages of all layers: [rates, keys and values, B, tokens of a frame, heads, head_dim] float32 each."""

    def __init__(
        self, rates: Sequence[float], partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device
    ):
        self._rates, self._rope = rates, rope
        self._sink, self._recent = partitions.sink_frames, partitions.recent_frames
        self._partitions = partitions
        sizes = (len(rates), 2, shape.batch, shape.tokens_per_frame, shape.heads, shape.head_dim)
        self._averages = [torch.zeros(sizes, dtype=torch.float32, device=device) for _ in range(shape.layers)]
        self._begun = [False] * shape.layers
        self._again = 0  # Counted frames that are committed again: those that leave the ring are averaged already.

    @property
    def nbytes(self) -> int:
        return sum(averages.nbytes for averages in self._averages)

    def store(self, layer: int, kv: KV, first: int, following: Past, timeless: Tensor, v: Tensor) -> None:
        """Adds the frames that leave the ring to the averages, and writes the averages to their slots."""
        if first >= self._again:
            self._add(layer, kv, first, timeless, v)
        memory = [placement for placement in following if placement.frame == PRUNED]
        for (keys, values), placement in zip(self._averages[layer], memory, strict=False):
            rotation = self._rope.frame_times([placement.position])
            kv.put_frame(placement.slot, keys.to(timeless.dtype), values.to(v.dtype), rotation)

    def restart(self, frames: int) -> None:
        self._again = frames if any(self._begun) else 0  # A flush has emptied the averages.

    def forget(self) -> None:
        self._begun = [False] * len(self._begun)

    def _add(self, layer: int, kv: KV, first: int, timeless: Tensor, v: Tensor) -> None:
        n, end = kv.tokens_per_frame, first + self._partitions.frames_per_block
        for frame in range(max(self._sink, first - self._recent), max(self._sink, end - self._recent)):
            if frame < first:
                rows = kv.tokens(self._partitions.slot(frame))
                self._take(layer, kv.timeless_keys(rows), kv.ring_values(rows))
            else:
                rows = slice((frame - first) * n, (frame - first + 1) * n)
                self._take(layer, timeless[:, rows], v[:, rows])

    def _take(self, layer: int, keys: Tensor, values: Tensor) -> None:
        frame = torch.stack((keys.float(), values.float()))
        for average, rate in zip(self._averages[layer], self._rates, strict=True):
            average.lerp_(frame, rate if self._begun[layer] else 1.0)
        self._begun[layer] = True
