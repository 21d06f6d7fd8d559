"""Sink + window: the first and the newest frames, with or without a gap in positions between them.

Without the gap it is LongLive's policy, and the Deep Sink of Deep Forcing; with the gap, StreamingLLM's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..partitions import Clock, Partitions
from ..policy import Policy, int8_knob, knob
from .window import window_partitions


@dataclass(frozen=True)
class SinkWindow(Policy):
    name = "sink_window"
    title = "Sink + window"
    keeps = "the first frames and the newest; everything in between is forgotten"

    window_frames: int = knob(
        21,
        "Latent frames in view (LongLive: 12). Sink and current block count, too; with a rolling window all "
        "its blocks.",
        minimum=1,
    )
    sink_frames: int = knob(3, "The first latent frames of the video, always in view (LongLive: 3).")
    realign: bool = knob(
        True,
        "Numbers sink and window as neighbours in time. Off leaves the sink at its true position, as in "
        "StreamingLLM; it then loses its effect as the video grows.",
        advanced=True,
    )
    kv_int8: str = int8_knob("sink", "recent")

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        clock: Clock = "window" if self.realign else "video"
        sizes = self.window_frames, self.sink_frames
        return window_partitions(self, *sizes, clock, self.kv_int8, frames_per_block, current_blocks)
