"""The cache policies: each is a small frozen dataclass that is its own configuration.

A policy turns into `Partitions`, the one plan that the cache executes. Every default and limit is written here once;
the command line and the ComfyUI node read their knobs from `knobs()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from ..errors import PackForcingError
from .partitions import Partitions

UNLIMITED_FRAMES = 1 << 40


class Knob(NamedTuple):
    """One setting of a policy, as a widget or an option shows it."""

    name: str
    default: int | bool
    minimum: int
    maximum: int
    help: str


def knob(default: int | bool, help: str, minimum: int = 0, maximum: int = 100_000) -> Any:
    """A dataclass field with its limits and its explanation."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum, "help": help})


class Policy:
    """What the cache keeps of the past. Subclasses are frozen dataclasses with a `name` and a `title`."""

    name: str
    title: str

    def __post_init__(self):
        for k in self.knobs():
            value = getattr(self, k.name)
            if not isinstance(k.default, bool) and not k.minimum <= value <= k.maximum:
                raise PackForcingError(
                    f"{k.name} of policy '{self.name}' is {value}; expected {k.minimum} to {k.maximum}."
                )

    @classmethod
    def knobs(cls) -> Iterator[Knob]:
        for f in fields(cls):
            yield Knob(f.name, f.default, f.metadata["minimum"], f.metadata["maximum"], f.metadata["help"])

    def partitions(self, frames_per_block: int) -> Partitions:
        """The plan for blocks of `frames_per_block` latent frames; PackForcingError when the knobs contradict it."""
        raise NotImplementedError


def _recent_of_window(policy: Policy, window_frames: int, sink_frames: int, frames_per_block: int) -> int:
    """Past frames that a window holds besides its sink and the current block."""
    recent = window_frames - sink_frames - frames_per_block
    if recent < 0:
        raise PackForcingError(
            f"Policy '{policy.name}': window_frames is {window_frames}, but it counts the sink ({sink_frames}) and the "
            f"current block ({frames_per_block}) too, so it must be at least {sink_frames + frames_per_block}. "
            "Raise window_frames or lower sink_frames."
        )
    return recent


@dataclass(frozen=True)
class Full(Policy):
    name = "full"
    title = "Full history (memory grows with the video)"

    def partitions(self, frames_per_block: int) -> Partitions:
        return Partitions(frames_per_block, sink_frames=0, recent_frames=UNLIMITED_FRAMES)


@dataclass(frozen=True)
class Window(Policy):
    name = "window"
    title = "Rolling window (Self-Forcing)"

    window_frames: int = knob(
        21, "Latent frames in view, the current block included. 21 is what Self-Forcing was trained with.", minimum=1
    )

    def partitions(self, frames_per_block: int) -> Partitions:
        recent = _recent_of_window(self, self.window_frames, 0, frames_per_block)
        return Partitions(frames_per_block, sink_frames=0, recent_frames=recent)


@dataclass(frozen=True)
class SinkWindow(Policy):
    name = "sink_window"
    title = "Sink + rolling window"

    window_frames: int = knob(21, "Latent frames in view, sink and current block included (LongLive: 12).", minimum=1)
    sink_frames: int = knob(3, "The first latent frames of the video, kept for ever at full resolution (LongLive: 3).")
    realign: bool = knob(
        True,
        "Close the gap in time between the sink and the window. Off leaves the sink at its old position: "
        "StreamingLLM-style sinks, which lose their hold as the video grows.",
    )

    def partitions(self, frames_per_block: int) -> Partitions:
        recent = _recent_of_window(self, self.window_frames, self.sink_frames, frames_per_block)
        return Partitions(frames_per_block, self.sink_frames, recent, "window" if self.realign else "video")


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (SinkWindow, Window, Full)}


def build_policy(name: str, **settings: int | bool | None) -> Policy:
    """The policy called `name` with those settings that are not None; unknown names and foreign knobs are errors."""
    if name not in POLICIES:
        raise PackForcingError(f"Unknown cache policy '{name}'; expected one of {', '.join(POLICIES)}.")
    policy = POLICIES[name]
    own = [k.name for k in policy.knobs()]
    chosen = {key: value for key, value in settings.items() if value is not None}
    foreign = sorted(set(chosen) - set(own))
    if foreign:
        raise PackForcingError(
            f"Policy '{name}' has no knob {', '.join(foreign)}; its knobs are {', '.join(own) or 'none'}."
        )
    return policy(**chosen)
