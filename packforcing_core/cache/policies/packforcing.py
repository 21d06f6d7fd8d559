"""PackForcing (arXiv 2603.25730): sink and recent frames at full resolution, and between them the most relevant blocks
of a compressed past.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

from ...errors import PackForcingError
from ..partitions import BankPlan, Partitions, Storage
from ..policy import AUTO, TRAINED_FRAMES, Policy, int8_knob, knob, packing
from ..select import NO_SELECTOR, SELECTORS

FULL_SPAN = 0
"""A value of `mid_span`: a block's true length."""


def _whole_blocks(name: str, value: int, default: int, frames_per_block: int) -> int:
    """`value` if it is a whole number of blocks. For AUTO, `default` rounded to the nearest whole number of blocks, at
    least 1.
    """
    rounded = max(1, math.floor(default / frames_per_block + 0.5)) * frames_per_block
    if value == AUTO:
        return rounded
    if value % frames_per_block:
        below = value // frames_per_block * frames_per_block
        raise PackForcingError(
            f"Policy 'packforcing': {name} is {value}, which is not whole blocks of {frames_per_block} latent frames. "
            f"Set it to {below} or {below + frames_per_block}, or to {AUTO}, which chooses {rounded}."
        )
    return value


@dataclass(frozen=True)
class PackForcing(Policy, BankPlan):
    name = "packforcing"
    title = "PackForcing"
    keeps = "sink and recent frames, and the most relevant of the newest 160 compressed blocks (two minutes)"
    default_sink_frames: ClassVar[int] = 8
    default_recent_frames: ClassVar[int] = 4

    sink_frames: int = knob(
        AUTO,
        "The first latent frames, always in view at full resolution, in whole blocks. -1: 8, rounded to whole blocks.",
        minimum=AUTO,
    )
    recent_frames: int = knob(
        AUTO,
        "The newest latent frames at full resolution, in whole blocks, at least one block; sink and current block not "
        "included. -1: 4, rounded to whole blocks.",
        minimum=AUTO,
    )
    top_k_blocks: int = knob(
        16, "Compressed blocks that each layer selects from the bank. 0 switches the compressed past off."
    )
    bank_blocks: int = knob(
        160,
        "How many compressed blocks are kept. 160 blocks of 3 latent frames are two minutes at 16 fps; then the "
        "oldest are dropped.",
    )
    mid_span: float = knob(
        float(AUTO),
        "Temporal positions, in latent frames, that each compressed block takes up. -1: what the compressor was "
        "trained with; without one, fitted to the 21 positions of the model's training. 0: a block's true length.",
        minimum=AUTO,
        advanced=True,
    )
    selector: str = knob(
        "mean",
        "How blocks are selected. mean: by the current queries; mean+newest: half by the current queries, half the "
        "newest; cosine+newest: the same with mean keys of equal length, and by mean again when the block is stored; "
        "future: by the running mean of all queries (Future Forcing); the others are for comparison.",
        choices=(*SELECTORS, NO_SELECTOR),
        advanced=True,
    )
    bank_storage: str = knob(
        "ram",
        "Where compressed blocks are kept: system RAM or VRAM, in full precision, as int8 or as int4.",
        choices=get_args(Storage),
        advanced=True,
    )
    selector_seed: int = knob(0, "Seed of the selector 'random'.", advanced=True)
    kv_int8: str = int8_knob("sink", "mid", "recent", "sink+mid", "sink+recent", "mid+recent")
    sink_gap: int = knob(
        0,
        "Latent-frame positions to leave open between the sink and the rest. 0: none, as in the paper.",
        maximum=1000,
        advanced=True,
    )
    alignment: float = knob(
        0.0,
        "Shifts the keys and values of a new compressed block towards the statistics of the sink and of the bank, "
        "to reduce drift. 0: off; TetherCache uses 0.35.",
        maximum=1,
        advanced=True,
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
            span = self._span(sink + recent + current_blocks * frames_per_block, frames_per_block)
            bank = replace(self, mid_span=span)
        return Partitions(
            *(frames_per_block, sink, recent, "window", bank),
            current_blocks=current_blocks,
            **packing(self.kv_int8),
            sink_gap=self.sink_gap,
        )

    def _span(self, other_frames: int, frames_per_block: int) -> float:
        """Positions of one mid block, in latent frames, when `other_frames` are taken by sink, recent and current
        frames.
        """
        if self.mid_span == AUTO:
            return max(0, TRAINED_FRAMES - other_frames) / self.top_k_blocks
        if self.mid_span < 0:
            raise PackForcingError(
                f"Policy 'packforcing': mid_span is {self.mid_span}; expected a positive number of latent frames, "
                f"{FULL_SPAN} (a block's true length) or {AUTO} (automatic)."
            )
        return float(frames_per_block) if self.mid_span == FULL_SPAN else float(self.mid_span)

    def fitted_to(self, compressor_span: float | None) -> PackForcing:
        if self.mid_span != AUTO or compressor_span is None:
            return self
        return replace(self, mid_span=float(compressor_span))
