"""Full history: keeps everything, as in CausVid. It is the reference for the other policies."""

from __future__ import annotations

from dataclasses import dataclass

from ..partitions import Partitions
from ..policy import Policy, int8_knob, packing

UNLIMITED_FRAMES = 1 << 40


@dataclass(frozen=True)
class Full(Policy):
    name = "full"
    title = "Full history (CausVid)"
    keeps = "every frame at full resolution; VRAM and time per block grow with the video"

    kv_int8: str = int8_knob()

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        return Partitions(frames_per_block, 0, UNLIMITED_FRAMES, current_blocks=current_blocks, **packing(self.kv_int8))
