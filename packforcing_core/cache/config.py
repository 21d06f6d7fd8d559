"""The cache policies: each is a small frozen dataclass that is its own configuration.

A policy turns into `Partitions`, the one plan that the cache executes. Every default and limit is written here once;
the command line and the ComfyUI node read their knobs from `knobs()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, get_args

from ..errors import PackForcingError
from .partitions import BankPlan, Clock, Coordinates, Eviction, Part, Partitions, PruningPlan, Storage
from .select import NO_SELECTOR, SELECTORS

UNLIMITED_FRAMES = 1 << 40


AUTO = -1
"""A knob left at its default where that default depends on the block length."""
FULL_SPAN = 0
TRAINED_FRAMES = 21
NO_PART, ALL_PARTS = "none", "all"


class Knob(NamedTuple):
    """One setting of a policy, as a widget or an option shows it. With `choices` the value is one of them."""

    name: str
    default: int | float | bool | str
    minimum: float
    maximum: float
    help: str
    choices: tuple[str, ...] = ()

    def check(self, policy: str, value: Any) -> None:
        """PackForcingError when `value` is not of the knob's kind or out of its range."""
        if self.choices:
            fits, expected = value in self.choices, f"one of {', '.join(self.choices)}"
        elif isinstance(self.default, bool):
            fits, expected = isinstance(value, bool), "True or False"
        else:
            kinds = (int, float) if isinstance(self.default, float) else (int,)
            unit = "a number" if isinstance(self.default, float) else "a whole number"
            fits = isinstance(value, kinds) and self.minimum <= value <= self.maximum
            expected = f"{unit} from {self.minimum} to {self.maximum}"
        if not fits:
            raise PackForcingError(f"{self.name} of policy '{policy}' is {value!r}; expected {expected}.")


def knob(
    default: int | float | bool | str,
    help: str,
    minimum: float = 0,
    maximum: float = 100_000,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its limits and its explanation."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum, "help": help, "choices": choices})


def int8_knob(*choices: str) -> Any:
    """The knob that every policy has: which parts of the past, of those that it has, are kept in 8 bits."""
    return knob(
        NO_PART,
        "Parts of the past whose keys and values are kept in 8 bits, 1.03 bytes a number instead of the model's 2 in "
        "bf16. With any part, all layers share one buffer to attend to, so the current block is not held once a layer "
        "either: 'all' leaves about half of the memory or less. The price: each layer reads its past once more a "
        "step, and a number is off by up to 1/254 of the largest in its token and head.",
        choices=(NO_PART, *choices, ALL_PARTS),
    )


def int8_parts(choice: str) -> tuple[Part, ...]:
    """The parts that a choice of `int8_knob` names."""
    return tuple(part for part in get_args(Part) if choice == ALL_PARTS or part in choice.split("+"))


class Policy:
    """What the cache keeps of the past. Subclasses are frozen dataclasses with a `name` and a `title`."""

    name: str
    title: str

    def __post_init__(self):
        for k in self.knobs():
            k.check(self.name, getattr(self, k.name))

    @classmethod
    def knobs(cls) -> Iterator[Knob]:
        for f in fields(cls):
            yield Knob(f.name, f.default, **f.metadata)

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        """The plan for blocks of `frames_per_block` latent frames, of which a rolling rollout denoises
        `current_blocks` together; PackForcingError when the knobs contradict it.
        """
        raise NotImplementedError


def _window_partitions(
    policy: Window | SinkWindow,
    window_frames: int,
    sink_frames: int,
    clock: Clock,
    frames_per_block: int,
    current_blocks: int,
) -> Partitions:
    """The plan of a window that counts all that a pass sees: its sink, recent frames and the current block or blocks.

    As much is kept as the commit of one block sees.
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
    int8 = int8_parts(policy.kv_int8)
    return Partitions(
        frames_per_block, sink_frames, recent, clock, current_blocks=current_blocks, view_frames=view, int8=int8
    )


@dataclass(frozen=True)
class Full(Policy):
    name = "full"
    title = "Full history (memory grows with the video)"

    kv_int8: str = int8_knob()

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        int8 = int8_parts(self.kv_int8)
        return Partitions(frames_per_block, 0, UNLIMITED_FRAMES, current_blocks=current_blocks, int8=int8)


@dataclass(frozen=True)
class Window(Policy):
    name = "window"
    title = "Rolling window (Self-Forcing)"

    window_frames: int = knob(
        21,
        "Latent frames in view, the current block (or all blocks that roll together) included. 21 is what Self-Forcing "
        "was trained with.",
        minimum=1,
    )
    kv_int8: str = int8_knob()

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        return _window_partitions(self, self.window_frames, 0, "video", frames_per_block, current_blocks)


@dataclass(frozen=True)
class SinkWindow(Policy):
    name = "sink_window"
    title = "Sink + rolling window"

    window_frames: int = knob(
        21,
        "Latent frames in view, sink and current block (or all blocks that roll together) included (LongLive: 12).",
        minimum=1,
    )
    sink_frames: int = knob(3, "The first latent frames of the video, kept for ever at full resolution (LongLive: 3).")
    realign: bool = knob(
        True,
        "Close the gap in time between the sink and the window. Off leaves the sink at its old position: "
        "StreamingLLM-style sinks, which lose their hold as the video grows.",
    )
    kv_int8: str = int8_knob("sink", "recent")

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        clock = "window" if self.realign else "video"
        return _window_partitions(self, self.window_frames, self.sink_frames, clock, frames_per_block, current_blocks)


def _whole_blocks(name: str, value: int, default: int, frames_per_block: int) -> int:
    """`value` if it is whole blocks; for AUTO, `default` rounded to the nearest whole blocks, at least one."""
    if value == AUTO:
        return max(1, math.floor(default / frames_per_block + 0.5)) * frames_per_block
    if value % frames_per_block:
        below = value // frames_per_block * frames_per_block
        raise PackForcingError(
            f"Policy 'packforcing': {name} is {value}, which is not whole blocks of {frames_per_block} latent frames. "
            f"The nearest are {below} and {below + frames_per_block}; {AUTO} rounds {default} for you."
        )
    return value


@dataclass(frozen=True)
class PackForcing(Policy):
    """Sink and recent frames at full resolution, and between them the most relevant blocks of a compressed past."""

    name = "packforcing"
    title = "PackForcing (compressed memory of the whole video)"
    default_sink_frames: ClassVar[int] = 8
    default_recent_frames: ClassVar[int] = 4

    sink_frames: int = knob(
        AUTO,
        "The first latent frames, kept for ever at full resolution, in whole blocks. -1: 8, rounded to whole blocks.",
        minimum=AUTO,
    )
    recent_frames: int = knob(
        AUTO,
        "The newest latent frames at full resolution, in whole blocks, at least one; neither sink nor current block "
        "counts. -1: 4, rounded to whole blocks.",
        minimum=AUTO,
    )
    top_k_blocks: int = knob(16, "Compressed blocks that each layer selects from the bank. 0 switches the mid off.")
    bank_blocks: int = knob(128, "Compressed blocks that are remembered (128: two minutes at 16 FPS).")
    mid_span: float = knob(
        float(AUTO),
        "Frames of position that a compressed block occupies; fractions are allowed. -1: as much as lets the whole "
        "window fit the 21 frames of training (zero-shot). 0: its true length, for a trained compressor.",
        minimum=AUTO,
    )
    selector: str = knob(
        "mean", "How blocks are selected; all but 'mean' are for comparison.", choices=(*SELECTORS, NO_SELECTOR)
    )
    eviction: str = knob(
        "fifo", "Which block a full bank forgets: the oldest, or the least often selected.", choices=get_args(Eviction)
    )
    bank_storage: str = knob(
        "host",
        "Where the bank lives: host memory or the GPU, in full precision or in 8 bits.",
        choices=get_args(Storage),
    )
    coordinates: str = knob(
        "grid",
        "Positions of compressed tokens: the centres of their regions in the full grid, or their own small grid.",
        choices=get_args(Coordinates),
    )
    selector_seed: int = knob(0, "Seed of the selector 'random'.")
    kv_int8: str = int8_knob("sink", "mid", "recent", "sink+mid", "sink+recent", "mid+recent")
    sink_gap: int = knob(
        0,
        "Frames of position left open behind the sink, once more than that lies between. 0 closes the gap, as the "
        "paper does: the sink then looks like the moment just before.",
        maximum=1000,
    )

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        sink = _whole_blocks("sink_frames", self.sink_frames, self.default_sink_frames, frames_per_block)
        recent = _whole_blocks("recent_frames", self.recent_frames, self.default_recent_frames, frames_per_block)
        if recent == 0:
            raise PackForcingError(
                f"Policy 'packforcing': recent_frames is 0, but the block before the current one must be in view. "
                f"Set it to {frames_per_block} or more, or to {AUTO}."
            )
        if self.top_k_blocks > self.bank_blocks:
            raise PackForcingError(
                f"Policy 'packforcing': top_k_blocks is {self.top_k_blocks}, more than the {self.bank_blocks} of "
                "bank_blocks. Raise bank_blocks or lower top_k_blocks."
            )
        bank = None
        if self.top_k_blocks and self.selector != NO_SELECTOR:
            bank = BankPlan(
                self.top_k_blocks,
                self.bank_blocks,
                self._span(sink + recent + current_blocks * frames_per_block, frames_per_block),
                self.selector,
                self.eviction,
                self.bank_storage,
                self.coordinates,
                self.selector_seed,
            )
        int8 = int8_parts(self.kv_int8)
        return Partitions(
            *(frames_per_block, sink, recent, "window", bank),
            current_blocks=current_blocks,
            int8=int8,
            sink_gap=self.sink_gap,
        )

    def _span(self, other_frames: int, frames_per_block: int) -> float:
        """Frames of position for a mid block beside `other_frames` of sink, recent and current."""
        if self.mid_span == AUTO:
            return max(0, TRAINED_FRAMES - other_frames) / self.top_k_blocks
        if self.mid_span < 0:
            raise PackForcingError(
                f"Policy 'packforcing': mid_span is {self.mid_span}; expected a positive number of latent frames, "
                f"{FULL_SPAN} (a block's true length) or {AUTO} (automatic)."
            )
        return float(frames_per_block) if self.mid_span == FULL_SPAN else float(self.mid_span)


@dataclass(frozen=True)
class DeepForcing(Policy):
    name = "deep_forcing"
    title = "Deep Forcing (deep sink, important tokens)"

    sink_frames: int = knob(10, "The first latent frames, kept for ever at full resolution.")
    recent_frames: int = knob(
        4, "The newest latent frames, current block included, of which no token is dropped.", minimum=1
    )
    budget_frames: int = knob(
        16, "Latent frames' worth of tokens left in view after dropping, all included.", minimum=1
    )
    window_frames: int = knob(21, "Latent frames in view, all included, at which tokens are dropped.", minimum=1)
    kv_int8: str = int8_knob("sink", "recent")

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        if current_blocks > 1:
            raise PackForcingError(
                "Policy 'deep_forcing' drops tokens at the first step of each block, but a rolling rollout denoises "
                f"{current_blocks} blocks at different steps together. Choose another policy, or a preset that samples "
                "block by block (self-forcing)."
            )
        if self.recent_frames < frames_per_block:
            raise PackForcingError(
                f"Policy 'deep_forcing': recent_frames is {self.recent_frames}, but it counts the current block; "
                f"expected at least {frames_per_block}."
            )
        if not self.sink_frames + self.recent_frames <= self.budget_frames <= self.window_frames:
            raise PackForcingError(
                f"Policy 'deep_forcing': budget_frames is {self.budget_frames}; expected at least sink_frames + "
                f"recent_frames ({self.sink_frames} + {self.recent_frames}) and at most window_frames "
                f"({self.window_frames})."
            )
        pruning = PruningPlan(self.window_frames, self.budget_frames, self.recent_frames)
        tail = pruning.past_limit(frames_per_block) - self.sink_frames
        int8 = int8_parts(self.kv_int8)
        return Partitions(frames_per_block, self.sink_frames, tail, "window", pruning=pruning, int8=int8)


POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (SinkWindow, Window, Full, PackForcing, DeepForcing)
}

POLICY_PRESETS: dict[str, Policy] = {
    "PackForcing zero-shot": PackForcing(),
    "PackForcing (paper)": PackForcing(mid_span=FULL_SPAN),
    "Deep Forcing": DeepForcing(),
    "LongLive": SinkWindow(window_frames=12, sink_frames=3),
    "Self-Forcing": Window(window_frames=21),
    "StreamingLLM sinks": SinkWindow(window_frames=21, sink_frames=3, realign=False),
    "CausVid": Full(),
}

MINIATURE_MEMORY = PackForcing(sink_frames=8, recent_frames=4, top_k_blocks=4, mid_span=1.0)
"""What the miniature and its compressor are trained and sampled with."""


def build_policy(name: str, **settings: int | float | bool | str | None) -> Policy:
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
