"""Sliding window: the newest frames, as in Self-Forcing."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import PackForcingError
from ..partitions import Clock, Partitions
from ..policy import TRAINED_FRAMES, Policy, int8_knob, knob, packing


def window_partitions(
    policy: Policy,
    window_frames: int,
    sink_frames: int,
    clock: Clock,
    kv_int8: str,
    frames_per_block: int,
    current_blocks: int,
) -> Partitions:
    """The plan of a window whose size includes everything a pass sees: its sink, recent frames and current blocks.

    The cache keeps as many frames as the commit of one block sees.
    """
    least = sink_frames + current_blocks * frames_per_block
    if window_frames < least:
        current = f"current block ({frames_per_block})"
        if current_blocks > 1:
            current = f"{current_blocks} blocks of {frames_per_block} that roll together"
        raise PackForcingError(
            f"Policy '{policy.name}': window_frames is {window_frames}, but it counts the sink ({sink_frames}) and the "
            f"{current} too, so it must be at least {least}. Raise window_frames or lower sink_frames."
        )
    recent = window_frames - sink_frames - frames_per_block
    view = window_frames if current_blocks > 1 else None
    return Partitions(
        frames_per_block,
        sink_frames,
        recent,
        clock,
        current_blocks=current_blocks,
        view_frames=view,
        **packing(kv_int8),
    )


@dataclass(frozen=True)
class Window(Policy):
    name = "window"
    title = "Sliding window (Self-Forcing)"
    keeps = "the newest frames; what is older is forgotten"

    window_frames: int = knob(
        TRAINED_FRAMES,
        "Latent frames in view. The current block counts too; with a rolling window, all its blocks. Self-Forcing was "
        "trained with 21.",
        minimum=1,
    )
    kv_int8: str = int8_knob()

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        return window_partitions(self, self.window_frames, 0, "video", self.kv_int8, frames_per_block, current_blocks)
