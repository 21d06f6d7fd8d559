"""The test row of each cache policy: settings that fill within a few blocks of 3, and what brute force holds them to.

A policy is added by its file in `packforcing_core/cache/policies` and a row here. The row is rendered, resumed,
replayed, killed, kept in 8 bits and counted in bytes like the others, and compared with its oracle pass by pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from packforcing_core.cache.config import (
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
from tests.reference.frontier import KeptFrames, MemRoPEOracle, Oracle, RollingSinkOracle, TetherCacheOracle


class Row(NamedTuple):
    """`oracle` makes, from a policy of this kind and the sizes (frames per block, layers, grid), its slow twin."""

    policy: Policy
    oracle: Callable[..., Oracle] | None = None

    @property
    def name(self) -> str:
        return self.policy.name


def everything(policy: Full, *sizes: Any) -> Oracle:
    return KeptFrames(lambda made: (list(range(made)), list(range(made))), *sizes)


def newest(policy: Window, *sizes: Any) -> Oracle:
    frames = policy.window_frames - sizes[0]
    return KeptFrames(lambda made: ([*range(max(0, made - frames), made)],) * 2, *sizes)


def sink_and_newest(policy: SinkWindow, *sizes: Any) -> Oracle:
    def kept(made: int) -> tuple[list[int], list[int]]:
        frames = policy.window_frames - policy.sink_frames - sizes[0]
        seen = [*range(min(made, policy.sink_frames)), *range(max(policy.sink_frames, made - frames), made)]
        return seen, [*range(len(seen))] if policy.realign else seen

    return KeptFrames(kept, *sizes)


def admitted(p: TetherCache, *sizes: Any) -> Oracle:
    return TetherCacheOracle(p.sink_frames, p.recent_frames, p.memory_frames, p.diversity, p.alignment, *sizes)


def averages(p: MemRoPE, *sizes: Any) -> Oracle:
    return MemRoPEOracle(p.sink_frames, p.recent_frames, (p.slow_rate, p.fast_rate), *sizes)


ROWS = (
    Row(Full(), everything),
    Row(Window(7), newest),
    Row(SinkWindow(9, 3), sink_and_newest),
    # What these two choose is followed, so that a tie does not show: test_packforcing.py, test_deep_forcing.py.
    Row(PackForcing(3, 3, 2, 3)),
    Row(DeepForcing(sink_frames=3, recent_frames=4, budget_frames=8, window_frames=12)),
    Row(TetherCache(2, 3, 4), admitted),
    Row(MemRoPE(2, 3), averages),
    Row(RollingSink(9), lambda policy, *sizes: RollingSinkOracle(policy.window_frames, *sizes)),
)
SMALL = [row.policy for row in ROWS]
