"""Which frames are kept, in which slots and at which positions: plain numbers, shared by all layers.

The past of a block has three parts: the *sink* (the first latent frames of the video), the *recent* frames (the
newest), and between them the *mid* (selected blocks from a bank of compressed blocks, or the tokens left after
pruning). A layer's buffer is

    [ extra | recent ring | sink | mid slots | copied | current ]

Left of the mid there is one slot per latent frame, filled from right to left; *extra* ones hold what a policy makes of
frames that have left (averages, for example). Attention does not depend on the order of
its keys, so the ring never moves what it keeps. The frames in view are always one slice, however many slots are filled;
so is what a compressed block attends to (everything except the ring). When several blocks are denoised together, part
of the ring goes out of view; the part that stays is *copied* in front of the current blocks, so that the view is one
slice again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, Literal, NamedTuple

from .few_bits import Bits

Clock = Literal["video", "window"]
Storage = Literal["ram", "vram", "ram_int8", "vram_int8", "ram_int4", "vram_int4"]
Part = Literal["sink", "mid", "recent"]

PRUNED = -1
"""The `frame` of a slot with tokens from several frames."""


class Placement(NamedTuple):
    """One latent frame of the past: its index in the video, its slot and its temporal position."""

    frame: int
    slot: int
    position: float


class BlockWindow(NamedTuple):
    """What one pass attends to: `past` frames in their slots, mid blocks at `mid_positions`, `copied` frames of the
    ring, and its own blocks at `current_positions`.

    `pruned_frames` is the number of `past` frames that stay in view once this block has pruned tokens, or None.
    """

    past: tuple[Placement, ...]
    mid_positions: tuple[float, ...]
    current_positions: tuple[float, ...]
    pruned_frames: int | None = None
    copied: tuple[Placement, ...] = ()

    @property
    def past_frames(self) -> int:
        """Frame slots in view, without the current block's."""
        return len(self.past) if self.pruned_frames is None else self.pruned_frames

    @property
    def chooses(self) -> bool:
        """Whether each layer has something to select at this block's first step."""
        return bool(self.mid_positions) or self.pruned_frames is not None


class BankPlan:
    """A mid of compressed blocks, as the policy configures it: the bank holds `bank_blocks`, and each layer selects
    `top_k_blocks` of them per block.

    `mid_span` is the number of latent-frame positions that a mid block takes up. `alignment` is the share (0..1) by
    which a new compressed block is moved towards the statistics of the sink and the bank.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    top_k_blocks: int
    bank_blocks: int
    mid_span: float
    selector: str
    bank_storage: str
    selector_seed: int
    alignment: float


class RulePlan:
    """How a policy selects from or changes the stored past, as data. `build` makes the `rule.Rule`; `extra_bytes` is
    what that rule stores.
    """

    def extra_bytes(self, shape: Any, partitions: Partitions) -> int:
        return 0

    def build(self, partitions: Partitions, shape: Any, rope: Any, device: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Rewriting(RulePlan):
    """A rule in which each commit changes the stored past. It adds `extra_frames` frame slots right after the sink,
    which come into view when the first frame leaves the recent ones.
    """

    @property
    def extra_frames(self) -> int:
        return 0

    def needed(self, partitions: Partitions, past_frames: int) -> bool:
        """Whether a clip whose last block has `past_frames` before it needs this rule at all."""
        return True


@dataclass(frozen=True)
class PruningPlan(RulePlan):
    """When `window_frames` frames are in view, current block included, tokens are dropped until `budget_frames` are
    left. The newest `recent_frames`, which include the current block, are never dropped.
    """

    window_frames: int
    budget_frames: int
    recent_frames: int

    def query_frames(self, frames_per_block: int) -> int:
        """How many of the newest past frames contribute queries, in addition to the current block."""
        return self.recent_frames - frames_per_block

    def view_limit(self, frames_per_block: int) -> int:
        """The most frames of the past that a pass sees: a block that drops tokens sees what is left of them."""
        return max(self.seen_of(past, frames_per_block) for past in self._pasts(frames_per_block))

    def seen_of(self, past: int, frames_per_block: int) -> int:
        """How many frames the next block sees of `past` kept ones."""
        full = past + frames_per_block >= self.window_frames
        return self.budget_frames - frames_per_block if full else past

    def past_before(self, block: int, frames_per_block: int) -> int:
        """Frames that are kept when block `block` begins."""
        full, period = self._rhythm(frames_per_block)
        if block <= full:
            return block * frames_per_block
        return self.budget_frames + (block - full - 1) % period * frames_per_block

    def past_limit(self, frames_per_block: int) -> int:
        """The most frames ever kept."""
        return max(self._pasts(frames_per_block))

    def _rhythm(self, frames_per_block: int) -> tuple[int, int]:
        """The first block that drops tokens, and after how many blocks tokens are dropped again."""
        full = ceil(self.window_frames / frames_per_block) - 1
        return full, max(1, ceil((self.window_frames - self.budget_frames) / frames_per_block))

    def _pasts(self, frames_per_block: int) -> list[int]:
        """`past_before` of the last block before tokens are dropped, and of all until they have been dropped twice."""
        full, period = self._rhythm(frames_per_block)
        return [self.past_before(block, frames_per_block) for block in range(max(0, full - 1), full + period + 1)]


@dataclass(frozen=True)
class Partitions:
    """The plan of one cache, in latent frames.

    `recent_frames` includes neither the sink nor the current block. `clock` sets the positions: with "video" each frame
    keeps its index in the video; with "window" positions count from the first frame in view. That closes the gap after
    the sink, except for `sink_gap` positions (without `pruning`; the pass over a compressed block closes the gap
    fully). A plan has at most one of `bank` and `pruning`. Both need the "window" clock; `bank` needs whole blocks in
    sink and recent.

    `current_blocks` blocks are denoised together in a rolling rollout; a commit is always one block. `view_frames` is
    the most frames that a pass sees, with sink and current blocks: the blocks of a rolling window replace the oldest
    recent frames. None: they are added to the view. Only without a bank and `pruning`.

    The parts in `packed` store keys and values in `bits` bits. Attention then reads one buffer that all layers share,
    and each layer holds only its stored past (`packed.py`).
    """

    frames_per_block: int
    sink_frames: int
    recent_frames: int
    clock: Clock = "video"
    bank: BankPlan | None = None
    pruning: PruningPlan | None = None
    current_blocks: int = 1
    view_frames: int | None = None
    packed: tuple[Part, ...] = ()
    bits: Bits = 8
    sink_gap: int = 0
    rewriting: Rewriting | None = None

    def bits_of(self, part: Part) -> Bits | None:
        """Bits per value of a part; None for full precision."""
        return self.bits if part in self.packed else None

    @property
    def rule(self) -> RulePlan | None:
        """The policy's rule for selecting from or changing the stored past; None without one."""
        return self.pruning or self.rewriting

    @property
    def extra_frames(self) -> int:
        """Frame slots in addition to those of sink and recent frames."""
        return self.rewriting.extra_frames if self.rewriting else 0

    @property
    def ring_frames(self) -> int:
        """Frame slots left of the sink: the ring and the extra ones."""
        return self.recent_frames + self.extra_frames

    @property
    def current_frames(self) -> int:
        """The most latent frames that are denoised together."""
        return self.current_blocks * self.frames_per_block

    @property
    def rolling_recent_frames(self) -> int:
        """Recent frames that a full window of `current_blocks` sees."""
        limit = self._recent_limit(self.current_blocks)
        if self.pruning:
            limit = self.pruning.view_limit(self.frames_per_block) - self.sink_frames
        return min(self.recent_frames, limit)

    @property
    def copied_frames(self) -> int:
        """Slots in front of the current blocks, for recent frames that stay in view while other frames leave it."""
        seen = min(self.recent_frames, self._recent_limit(self.current_blocks))
        return seen if seen < self.recent_frames else 0

    def _recent_limit(self, blocks: int) -> int:
        if self.view_frames is None:
            return self.recent_frames
        return self.view_frames - self.sink_frames - blocks * self.frames_per_block

    @property
    def past_frames(self) -> int:
        """Frame slots of the past: what is attended when all are full, without mid and current block."""
        return self.sink_frames + self.ring_frames

    @property
    def top_k_blocks(self) -> int:
        """Slots for the compressed blocks that each layer selects from the bank."""
        return self.bank.top_k_blocks if self.bank else 0

    @property
    def bank_on_host(self) -> bool:
        """Whether the compressed blocks are in system RAM."""
        return self.bank is not None and self.bank.bank_storage.startswith("ram")

    @property
    def unrotated_frames(self) -> int:
        """Ring frames whose keys are also kept without rotation in time, because their position may change."""
        outlives = self.clock == "window" and (self.recent_frames > self.frames_per_block or self.copied_frames > 0)
        return self.ring_frames if outlives or self.extra_frames or self.pruning else 0

    @property
    def candidate_frames(self) -> int:
        """Recent frames whose values are also kept outside the attended buffer, as candidates for selection."""
        return self.recent_frames if self.pruning else 0

    @property
    def query_frames(self) -> int:
        """Newest past frames whose queries contribute to a selection (stored as one sum per frame)."""
        if self.pruning:
            return self.pruning.query_frames(self.frames_per_block)
        return self.recent_frames if self.bank else 0

    def limited_to(self, latent_frames: int) -> Partitions:
        """The same plan for a clip of `latent_frames`, without the slots that it would never fill."""
        past = max(0, latent_frames - self.frames_per_block)
        sink = min(self.sink_frames, past)
        recent = min(self.recent_frames, past - sink)
        mid_blocks = (past - sink - recent) // self.frames_per_block
        bank = self.bank
        if bank:
            limited = min(bank.top_k_blocks, mid_blocks), min(bank.bank_blocks, mid_blocks)
            bank = replace(bank, top_k_blocks=limited[0], bank_blocks=limited[1]) if mid_blocks else None
        rewriting = self.rewriting if self.rewriting and self.rewriting.needed(self, past) else None
        return replace(self, sink_frames=sink, recent_frames=recent, bank=bank, rewriting=rewriting)

    def slot(self, frame: int) -> int:
        """The slot of frame `frame` of the video: from right to left until the ring is full, then that of the oldest
        frame.
        """
        if frame >= self.sink_frames + self.recent_frames:
            frame = self.sink_frames + (frame - self.sink_frames) % self.recent_frames
        return self.past_frames - 1 - frame

    def window(self, committed: int, banked: int = 0, blocks: int = 1) -> BlockWindow:
        """The view of the next `blocks` blocks after `committed` latent frames, with `banked` blocks in the bank."""
        if self.pruning:
            return self._pruned_window(self.pruning, committed)
        oldest_kept = max(self.sink_frames, committed - self.recent_frames)
        first_recent = max(oldest_kept, committed - self._recent_limit(blocks))
        span, mid_blocks = (self.bank.mid_span, min(self.top_k_blocks, banked)) if self.bank else (0.0, 0)
        extra = self.extra_frames if committed > self.sink_frames + self.recent_frames else 0
        between = first_recent - self.sink_frames - span * mid_blocks - extra
        left_open = min(self.sink_gap, max(0, between))
        gap = between - left_open if self.clock == "window" else 0
        mid = tuple(self.sink_frames + left_open + i * span for i in range(mid_blocks))
        sink = tuple(Placement(f, self.slot(f), f) for f in range(min(committed, self.sink_frames)))
        sink += tuple(Placement(PRUNED, self.extra_frames - 1 - i, self.sink_frames + i) for i in range(extra))
        recent = tuple(Placement(f, self.slot(f), f - gap) for f in range(first_recent, committed))
        current = tuple(f - gap for f in range(committed, committed + blocks * self.frames_per_block))
        if first_recent > oldest_kept:
            return BlockWindow(sink, mid, current, copied=recent)
        return BlockWindow(sink + recent, mid, current)

    def _pruned_window(self, pruning: PruningPlan, committed: int) -> BlockWindow:
        block = committed // self.frames_per_block
        past = pruning.past_before(block, self.frames_per_block)
        was_pruned = past < committed
        whole_from = pruning.budget_frames - pruning.recent_frames if was_pruned else self.sink_frames
        placements = tuple(
            Placement(self._frame_at(i, past, committed, whole_from), self.past_frames - 1 - i, i) for i in range(past)
        )
        full = past + self.frames_per_block >= pruning.window_frames
        left = pruning.seen_of(past, self.frames_per_block)
        return BlockWindow(placements, (), tuple(range(left, left + self.frames_per_block)), left if full else None)

    def _frame_at(self, index: int, past: int, committed: int, whole_from: int) -> int:
        if index < self.sink_frames:
            return index
        return PRUNED if index < whole_from else committed - past + index

    def left_blocks(self, block: int) -> range:
        """The blocks after the sink that have left the recent frames at the start of `block`."""
        first = self.sink_frames // self.frames_per_block
        return range(first, max(first, block - self.recent_frames // self.frames_per_block))

    def blocks_in_view(self, committed: int) -> tuple[int, ...]:
        """The blocks with at least one whole frame in view after `committed` latent frames, in order."""
        frames = (p.frame for p in self.window(committed).past if p.frame != PRUNED)
        return tuple(sorted({frame // self.frames_per_block for frame in frames}))
