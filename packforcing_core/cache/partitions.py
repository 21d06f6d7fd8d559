"""Who is remembered, in which slot, at which position: plain integers, shared by all layers.

The past of a block is the *sink* (the first latent frames of the video) and the *recent* frames (the newest). A layer's
buffer has one slot per latent frame: the sink's, a ring for the recent frames, then the current block right behind
whatever is filled. Attention does not care about the order of its keys, so a ring never moves what it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Clock = Literal["video", "window"]


class Placement(NamedTuple):
    """One latent frame of the past: its index in the video, its slot and its temporal position."""

    frame: int
    slot: int
    position: int


class BlockWindow(NamedTuple):
    """What one block sees: the past, and itself in the slots from `current_slot` on, at `current_positions`."""

    past: tuple[Placement, ...]
    current_slot: int
    current_positions: tuple[int, ...]


@dataclass(frozen=True)
class Partitions:
    """The plan of one cache, in latent frames.

    `recent_frames` counts neither sink nor current. The clock decides positions: "video" leaves every frame at its
    index in the video; "window" counts from the first frame in view and closes the gap behind the sink.
    """

    frames_per_block: int
    sink_frames: int
    recent_frames: int
    clock: Clock = "video"

    @property
    def past_frames(self) -> int:
        """Slots for the past: what is attended besides the current block once all of them are full."""
        return self.sink_frames + self.recent_frames

    @property
    def buffer_frames(self) -> int:
        """Slots of a layer's attended buffer, the current block's included."""
        return self.past_frames + self.frames_per_block

    @property
    def unrotated_frames(self) -> int:
        """Recent frames whose keys are also kept without rotation, because they outlive a block under a moving
        clock.
        """
        outlives = self.clock == "window" and self.recent_frames > self.frames_per_block
        return self.recent_frames if outlives else 0

    def limited_to(self, latent_frames: int) -> Partitions:
        """The same plan for a clip of `latent_frames`, without slots that it would never fill."""
        past = max(0, latent_frames - self.frames_per_block)
        sink = min(self.sink_frames, past)
        return replace(self, sink_frames=sink, recent_frames=min(self.recent_frames, past - sink))

    def slot(self, frame: int) -> int:
        """Where frame `frame` of the video is kept: its own index until the ring is full, then the oldest one's
        place.
        """
        if frame < self.past_frames:
            return frame
        return self.sink_frames + (frame - self.sink_frames) % self.recent_frames

    def window(self, committed: int) -> BlockWindow:
        """The view of the block that follows `committed` latent frames."""
        first_recent = max(self.sink_frames, committed - self.recent_frames)
        kept = (*range(min(committed, self.sink_frames)), *range(first_recent, committed))
        gap = first_recent - self.sink_frames if self.clock == "window" else 0
        past = tuple(Placement(f, self.slot(f), f if f < self.sink_frames else f - gap) for f in kept)
        current = range(committed - gap, committed - gap + self.frames_per_block)
        return BlockWindow(past, len(past), tuple(current))
