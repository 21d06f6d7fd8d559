"""The rows of the study, as data: policies with their knobs, and the compressor's branches.

Every row that is not a policy of its own changes one thing about the base: the policy with the trained compressor, or,
without one, zero-shot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from ...cache.config import (
    DeepForcing,
    Full,
    MemRoPE,
    PackForcing,
    Policy,
    RollingSink,
    SinkWindow,
    TetherCache,
    Window,
)
from ...cache.policy import AUTO
from ...compressor.compressor import Branches
from ...errors import PackForcingError
from ...miniature.load import FAMILY, MEMORY

FRAMES_PER_BLOCK = FAMILY.frames_per_block
TRAINED_WINDOW = 20
"""Latent frames of the miniature's training clips: no window in the study is larger, unless its policy requires
that.
"""
SINK = 8
POLICIES, SINKS, GAP, SELECTION, SPAN, BRANCHES = "policies", "sink", "sink gap", "selection", "mid_span", "branches"
ALIGNMENT, ORACLES = "alignment", "oracles"
GROUPS = (POLICIES, SINKS, GAP, SELECTION, SPAN, ALIGNMENT, BRANCHES, ORACLES)
PLANNED = ("window", "sink+window", "zero-shot", "no mid", "FIFO")
"""The comparisons that were written down before any test seed was rendered. They are corrected for each other, and all
others for each other.
"""
QUICK = ("full", "window", "sink+window realigned", "zero-shot", "trained")


@dataclass(frozen=True)
class Row:
    """`branches` is the compressor's; None if the policy does not compress. An `oracle` row is told which block shows
    the object, so it answers questions but renders no videos: it sees that block "whole" (as if it had just been
    sampled), or "selected" (compressed, by every layer).
    """

    name: str
    group: str
    policy: Policy
    branches: Branches | None = None
    oracle: Literal["", "whole", "selected"] = ""

    @property
    def needs_training(self) -> bool:
        """Whether the row needs trained compressor weights."""
        return self.branches in ("both", "high_res")

    def as_dict(self) -> dict:
        knobs = asdict(self.policy)
        told = {"oracle": self.oracle} if self.oracle else {}
        return {"name": self.name, "policy": self.policy.name, "knobs": knobs, "branches": self.branches, **told}


ZERO_SHOT = Row("zero-shot", POLICIES, PackForcing(), "low_res")
TRAINED = Row("trained", POLICIES, MEMORY, "both")
OTHERS = (
    Row("full", POLICIES, Full()),
    Row("window", POLICIES, Window(TRAINED_WINDOW)),
    Row("sink+window", POLICIES, SinkWindow(TRAINED_WINDOW, SINK, realign=False)),
    Row("sink+window realigned", POLICIES, SinkWindow(TRAINED_WINDOW, SINK, realign=True)),
    Row("deep forcing", POLICIES, DeepForcing(window_frames=TRAINED_WINDOW)),
    # The papers' sizes, in whole blocks of 4 and within the frames of the training.
    Row("TetherCache", POLICIES, TetherCache(sink_frames=4, recent_frames=4, memory_frames=12)),
    Row("MemRoPE", POLICIES, MemRoPE(sink_frames=4, recent_frames=4)),
    Row("Rolling Sink", POLICIES, RollingSink(TRAINED_WINDOW)),
)
KNOBS = (
    ("sink 0", SINKS, {"sink_frames": 0}),
    ("sink 4", SINKS, {"sink_frames": 4}),
    ("gap 12", GAP, {"sink_gap": 12}),
    ("gap 20", GAP, {"sink_gap": 20}),
    ("no mid", SELECTION, {"top_k_blocks": 0}),
    ("affinity alone", SELECTION, {"selector": "mean"}),
    ("half newest", SELECTION, {"selector": "mean+newest"}),
    ("FIFO", SELECTION, {"selector": "recency"}),
    ("random", SELECTION, {"selector": "random"}),
    ("attention mass", SELECTION, {"selector": "attention_mass"}),
    ("running mean", SELECTION, {"selector": "future"}),
    ("top 4", SELECTION, {"top_k_blocks": 4}),
    ("top 16", SELECTION, {"top_k_blocks": 16}),
    ("span 1", SPAN, {"mid_span": 1.0}),
    ("span 2", SPAN, {"mid_span": 2.0}),
    ("span 4", SPAN, {"mid_span": 4.0}),
    ("span auto", SPAN, {"mid_span": float(AUTO)}),
    ("aligned", ALIGNMENT, {"alignment": 0.35}),
)
PARTS: tuple[tuple[str, Branches], ...] = (("HR alone", "high_res"), ("LR alone", "low_res"))


def base_row(trained: bool) -> Row:
    """The row that the ablations change, and that all rows are compared with."""
    return TRAINED if trained else ZERO_SHOT


def study_rows(trained: bool) -> tuple[Row, ...]:
    """All rows; without `trained` compressor weights, those that need none. None repeats another."""
    policies, base = (*OTHERS, ZERO_SHOT, *((TRAINED,) if trained else ())), base_row(trained)
    # What limits recall: the model (whole), the compressor (selected), or the selection, which the base makes itself.
    oracles = (
        Row("oracle whole", ORACLES, Full(), oracle="whole"),
        Row("oracle selected", ORACLES, base.policy, base.branches, "selected"),
    )
    return (*policies, *_ablations(base), *oracles)


def _ablations(base: Row) -> Iterator[Row]:
    plan = base.policy.partitions(FRAMES_PER_BLOCK)
    for name, group, knobs in KNOBS:
        policy = replace(base.policy, **knobs)
        own = policy.partitions(FRAMES_PER_BLOCK)
        if own != plan:  # "top 4" may equal the base.
            yield Row(name, group, policy, base.branches if own.bank else None)
    if base.branches == "both":
        yield from (Row(name, BRANCHES, base.policy, branches) for name, branches in PARTS)


def left_out(trained: bool) -> tuple[str, ...]:
    """The names of the rows that `study_rows` has with trained weights alone."""
    here = {row.name for row in study_rows(trained)}
    return tuple(row.name for row in study_rows(True) if row.name not in here)


def chosen_rows(rows: Sequence[Row], names: Sequence[str]) -> tuple[Row, ...]:
    """The rows with these names, in the study's order. Raises PackForcingError for an unknown name."""
    unknown = sorted(set(names) - {row.name for row in rows})
    if unknown:
        raise PackForcingError(
            f"The study has no row {', '.join(map(repr, unknown))} with these weights; expected some of: "
            f"{', '.join(row.name for row in rows)}."
        )
    return tuple(row for row in rows if row.name in names)
