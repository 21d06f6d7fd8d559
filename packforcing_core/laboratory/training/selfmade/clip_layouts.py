"""Short clips laid out as a long video's KV cache is.

Of a video of minutes the sink shows what was there at first, between it and the present lie many blocks of something
else, and each layer has to find what matters. A clip of five seconds has none of this. So another clip lends blocks:

    [ sink: the other clip | past of the clip | k blocks of the other clip | newest of the clip ] -> the next block

and the next block shall have the flow that it has behind the short clip itself, seen whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ....cache.config import Policy
from ....geometry import compressed_grid
from .clips import Clip

MOST_BETWEEN = 10
"""Blocks of the other clip between what has been seen and the newest, at most."""


@dataclass(frozen=True)
class Layout:
    """`target` is the clip's block to make, after its blocks `first` to `target` - 1. Of the other clip `sink` blocks
    lie in front and `between` behind all but the `newest` blocks of the clip.
    """

    target: int
    newest: int
    sink: int = 0
    between: int = 0
    first: int = 0

    @property
    def length(self) -> int:
        """Blocks before the one to make."""
        return self.sink + self.between + self.target - self.first

    @property
    def sought(self) -> range:
        """Where the clip's own past stands among the other clip's blocks; empty where there are none of them."""
        past, _ = _places(self)
        return range(self.sink, self.sink + len(past) if self.between else self.sink)


class Sample(NamedTuple):
    """A batch in one layout: `long` and `short` [B, 16, F, h, w] are the blocks before x0 [B, 16, frames_per_block, h,
    w], laid out and as they were; `low_res` are the small latents of `long`'s blocks.
    """

    long: Tensor
    low_res: Tensor
    short: Tensor
    x0: Tensor
    prompts: Sequence[str]


def arranged(clips: Sequence[Clip], others: Sequence[Clip], layout: Layout, frames_per_block: int) -> Sample:
    """The clips in `layout`, each with blocks of its other clip, which begin again where they do not suffice."""
    rows = [_arranged(clip, other, layout, frames_per_block) for clip, other in zip(clips, others, strict=True)]
    long, low_res, short, x0 = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
    return Sample(long, low_res, short, x0, [clip.prompt for clip in clips])


def _arranged(clip: Clip, other: Clip, layout: Layout, frames_per_block: int) -> tuple[Tensor, ...]:
    times = compressed_grid(frames_per_block, *clip.latents.shape[2:])[0]
    own, lent = (c.latents.split(frames_per_block, dim=1) for c in (clip, other))
    own_small, lent_small = (c.low_res.split(times, dim=1) for c in (clip, other))
    past, newest = _places(layout)
    borrowed = [number % len(lent) for number in range(layout.sink + layout.between)]
    front, between = borrowed[: layout.sink], borrowed[layout.sink :]

    def joined(mine: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        parts = [others[i] for i in front] + [mine[i] for i in past]
        return torch.cat([*parts, *(others[i] for i in between), *(mine[i] for i in newest)], dim=1)

    short = torch.cat([own[i] for i in (*past, *newest)], dim=1)
    return joined(own, lent), joined(own_small, lent_small), short, own[layout.target]


def _places(layout: Layout) -> tuple[range, range]:
    newest = range(max(layout.first, layout.target - layout.newest), layout.target)
    return range(layout.first, newest.start), newest


class Shares(NamedTuple):
    """How often layouts are of each kind; the rest is laid out again."""

    as_it_was: float = 0.25
    nothing_returns: float = 0.125


def drawn_layout(
    random: torch.Generator, memory: Policy, blocks: int, frames_per_block: int, shares: Shares | None = None
) -> Layout:
    """A layout for clips of `blocks` blocks in which the block to make sees compressed blocks under `memory`.

    Where nothing returns, what lies compressed is the other clip's alone, and the newest blocks are the whole truth.
    """
    shares = shares or Shares()
    sink, newest = memory_blocks(memory, frames_per_block)
    kind = float(torch.rand((), generator=random))
    least = newest + 1
    if kind < shares.as_it_was and sink + newest + 1 < blocks:
        return Layout(_integer(random, sink + newest + 1, blocks), newest)
    target = _integer(random, min(least + 1, blocks - 1), blocks)
    if kind > 1 - shares.nothing_returns:
        return Layout(target, newest, sink, _integer(random, 1, MOST_BETWEEN + 1), target - newest)
    return Layout(target, newest, sink, _integer(random, 0, MOST_BETWEEN + 1))


def memory_blocks(memory: Policy, frames_per_block: int) -> tuple[int, int]:
    """Blocks of the sink, and of the recent frames."""
    partitions = memory.partitions(frames_per_block)
    return partitions.sink_frames // frames_per_block, partitions.recent_frames // frames_per_block


def _integer(random: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=random))
