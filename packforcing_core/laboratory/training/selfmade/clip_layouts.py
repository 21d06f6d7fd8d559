"""Lays out the blocks of short clips as the KV cache of a long video would hold them.

In a long video the sink shows the beginning, many unrelated blocks lie between it and the present, and each layer has
to select the relevant ones. A clip of five seconds has none of this. So the missing blocks are taken from another clip:

    [ sink: the other clip | past of the clip | k blocks of the other clip | newest blocks of the clip ] -> next block

The training target is the flow of the next block given the short clip alone, with its full history.
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
"""Maximum number of the other clip's blocks between the clip's past and its newest blocks."""


@dataclass(frozen=True)
class Layout:
    """`target` is the clip's block to predict; its blocks `first` to `target` - 1 are in the cache. Of the other clip,
    `sink` blocks come first, and `between` blocks come before the clip's `newest` blocks.
    """

    target: int
    newest: int
    sink: int = 0
    between: int = 0
    first: int = 0

    @property
    def length(self) -> int:
        """Number of blocks before the target."""
        return self.sink + self.between + self.target - self.first

    @property
    def sought(self) -> range:
        """Positions of the clip's own past in the layout, if the other clip's blocks separate it from the newest
        blocks; otherwise empty.
        """
        past, _ = _places(self)
        return range(self.sink, self.sink + len(past) if self.between else self.sink)


class Sample(NamedTuple):
    """A batch in one layout. `long` [B, 16, F, h, w] holds the laid-out blocks before x0, `short` [B, 16, F', h, w] the
    clip's own blocks alone, and x0 [B, 16, frames_per_block, h, w] the target block. `low_res` are the low-resolution
    latents of `long`'s blocks.
    """

    long: Tensor
    low_res: Tensor
    short: Tensor
    x0: Tensor
    prompts: Sequence[str]


def arranged(clips: Sequence[Clip], others: Sequence[Clip], layout: Layout, frames_per_block: int) -> Sample:
    """Arranges each clip in `layout`, with blocks of its other clip. If the other clip has too few
    blocks, they repeat.
    """
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
    """Probabilities of two kinds of layouts; the remaining probability is that of the clip's past laid out in a long
    video.
    """

    as_it_was: float = 0.25
    nothing_returns: float = 0.125


def drawn_layout(
    random: torch.Generator, memory: Policy, blocks: int, frames_per_block: int, shares: Shares | None = None
) -> Layout:
    """Draws a layout for clips of `blocks` blocks in which the target block sees compressed blocks under `memory`.

    If `nothing_returns` is drawn, the compressed blocks are all of the other clip, and the target depends on the newest
    blocks only.
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
    """Returns the numbers of sink blocks and of recent blocks of a policy."""
    partitions = memory.partitions(frames_per_block)
    return partitions.sink_frames // frames_per_block, partitions.recent_frames // frames_per_block


def _integer(random: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=random))
