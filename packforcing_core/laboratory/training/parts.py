"""Attention between the parts of one training pass, without a cache: each part attends to chosen other parts.

A pass of teacher forcing holds a clip twice, clean and noisy. Every noisy block attends to the clean blocks that the
cache's plan would show it, at the same positions. Every clean block does the same; its keys and values equal those that
a commit would write. Gradients flow through all of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ...attention import Attention, sdpa
from ...cache.ledger import Ledger
from ...cache.mid import CompressedRope
from ...cache.partitions import BankPlan, Partitions
from ...errors import PackForcingError
from ...rope import GridRope, Rotation, rotate


@dataclass(frozen=True)
class Reading:
    """A slice of the pass's tokens, used as keys that are rotated by `rotation`."""

    tokens: slice
    rotation: Rotation


@dataclass(frozen=True)
class Part:
    """Tokens that attend together: to `sees`, and to themselves."""

    own: Reading
    sees: tuple[Reading, ...] = ()


class Repeatable:
    """Base of histories without side effects: calling `attend` again returns the same, so a layer may be recomputed."""


class PartsHistory(Repeatable):
    """A `History` for a pass whose tokens are those of `parts`, in order and without gaps."""

    def __init__(self, parts: Sequence[Part], attention: Attention = sdpa):
        self.attention = attention
        self._own = [part.own.rotation for part in parts]
        self._lengths = [part.own.tokens.stop - part.own.tokens.start for part in parts]
        self._starts = [part.own.tokens.start for part in parts]
        # Keys that several parts read with one rotation are rotated once: (part, its rows, rotation) by index.
        distinct: dict[tuple[int, int], int] = {}
        self._readings: list[tuple[int, slice, Rotation]] = []
        self._seen: list[list[int]] = []
        for part in parts:
            seen = []
            for reading in (*part.sees, part.own):
                name = reading.tokens.start, id(reading.rotation)
                if name not in distinct:
                    distinct[name] = len(self._readings)
                    self._readings.append(self._place(reading))
                seen.append(distinct[name])
            self._seen.append(seen)

    def _place(self, reading: Reading) -> tuple[int, slice, Rotation]:
        part = bisect_right(self._starts, reading.tokens.start) - 1
        first = reading.tokens.start - self._starts[part]
        return part, slice(first, first + reading.tokens.stop - reading.tokens.start), reading.rotation

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # One split: its gradient is one concatenation. That of many slices would be a sum of as many full tensors.
        q_parts, k_parts, v_parts = (x.split(self._lengths, dim=1) for x in (q, k, v))
        keys = [rotate(k_parts[part][:, rows], rotation) for part, rows, rotation in self._readings]
        values = [v_parts[part][:, rows] for part, rows, _ in self._readings]
        outputs = [
            self.attention(
                rotate(own, rotation),
                torch.cat([keys[i] for i in seen], dim=1),
                torch.cat([values[i] for i in seen], dim=1),
            )
            for own, rotation, seen in zip(q_parts, self._own, self._seen, strict=True)
        ]
        return torch.cat(outputs, dim=1)


def seen_compressed(partitions: Partitions, blocks: int) -> range:
    """Returns the blocks whose compressed forms are seen by some block of a clip of `blocks` blocks."""
    return partitions.left_blocks(blocks - 1) if partitions.bank else range(0)


class PartsPlan:
    """The attention plan of a clip of `blocks` blocks under a cache's plan.

    The tokens of a pass are [clean blocks | compressed forms of the blocks that reach the mid | padding | noisy
    blocks]. With the padding, which nothing attends to, the compressed blocks fill `twin_frames` whole frames, because
    timesteps are given per frame. Raises PackForcingError for a policy that drops tokens by their keys.
    """

    def __init__(self, partitions: Partitions, blocks: int, rope: GridRope):
        self.partitions, self.blocks, self.rope = partitions, blocks, rope
        self.tokens_per_frame = rope.grid[0] * rope.grid[1]
        self.block_tokens = partitions.frames_per_block * self.tokens_per_frame
        self.compressed_rope = (
            CompressedRope(rope, partitions.bank, partitions.frames_per_block) if partitions.bank else None
        )
        self._rotations: dict[tuple, Rotation] = {}
        if partitions.rule:
            raise PackForcingError(
                "A policy that drops tokens chooses them by their keys, but teacher forcing plans ahead what is seen. "
                "Train with windows, sinks or compressed blocks."
            )

    @property
    def _compressed(self) -> tuple[BankPlan, CompressedRope]:
        if self.partitions.bank is None or self.compressed_rope is None:
            raise PackForcingError("This policy keeps no compressed blocks.")
        return self.partitions.bank, self.compressed_rope

    @property
    def twins(self) -> range:
        """The blocks whose compressed forms are seen by some block of the clip."""
        return seen_compressed(self.partitions, self.blocks)

    def parts(self, noisy_copies: int = 1) -> list[Part]:
        """Returns the parts of the clean blocks, the compressed blocks, the padding and the noisy blocks
        of every copy.
        """
        twins = [self._twin(index) for index in range(len(self.twins))]
        clean = [self._block(block, block * self.block_tokens) for block in range(self.blocks)]
        first = self.blocks * self.block_tokens + self.twin_frames * self.tokens_per_frame
        noisy_blocks = [
            self._block(index % self.blocks, first + index * self.block_tokens)
            for index in range(noisy_copies * self.blocks)
        ]
        return [*clean, *twins, *self._padding(first), *noisy_blocks]

    @property
    def twin_frames(self) -> int:
        """Number of frames whose tokens the compressed blocks and their padding fill."""
        return -(-self._compressed_tokens // self.tokens_per_frame)

    @property
    def padding_tokens(self) -> int:
        return -self._compressed_tokens % self.tokens_per_frame

    @property
    def _compressed_tokens(self) -> int:
        return self.compressed_rope.tokens * len(self.twins) if self.compressed_rope else 0

    def _padding(self, end: int) -> list[Part]:
        tokens = self.padding_tokens
        rotation = self.rope.frames([0.0])[:tokens]
        return [Part(Reading(slice(end - tokens, end), rotation))] if tokens else []

    def _block(self, block: int, start: int) -> Part:
        window = Ledger.before(self.partitions, block).window()
        past = sorted((p.frame, p.position) for p in window.past)
        frames_per_block = self.partitions.frames_per_block
        runs = [list(run) for _, run in groupby(past, key=lambda p: (p[1] - p[0], p[0] // frames_per_block))]
        sees = [self._frames(run) for run in runs]
        newest = self._seen_compressed(block)
        sees += [self._twin_reading(i, at) for i, at in zip(newest, window.mid_positions, strict=True)]
        own = Reading(slice(start, start + self.block_tokens), self._rotation(window.current_positions))
        return Part(own, tuple(sees))

    def _frames(self, run: list[tuple[int, float]]) -> Reading:
        first, n = run[0][0], self.tokens_per_frame
        return Reading(slice(first * n, (first + len(run)) * n), self._rotation(tuple(at for _, at in run)))

    def _twin(self, index: int) -> Part:
        """Returns the part of a compressed block. It attends to the sink, to the compressed blocks that its block has
        seen and that are still in the bank, and to itself.
        """
        sink, block, (bank, _) = self.partitions.sink_frames, self.partitions.frames_per_block, self._compressed
        seen = self._seen_compressed(self.twins[index])
        seen = range(max(seen.start, index - bank.bank_blocks), seen.stop)
        sees = [self._frames([(first + i, first + i) for i in range(block)]) for first in range(0, sink, block)]
        sees += [self._twin_reading(i, sink + at * bank.mid_span) for at, i in enumerate(seen)]
        return Part(self._twin_reading(index, sink + len(seen) * bank.mid_span), tuple(sees))

    def _seen_compressed(self, block: int) -> range:
        """Returns the indices of the compressed blocks that `block` sees: the newest ones if there are more than it may
        see.
        """
        banked = len(seen_compressed(self.partitions, block + 1))
        return range(max(0, banked - self.partitions.top_k_blocks), banked)

    def _twin_reading(self, index: int, position: float) -> Reading:
        _, rope = self._compressed
        start = self.blocks * self.block_tokens + index * rope.tokens
        key = ("twin", position)
        if key not in self._rotations:
            self._rotations[key] = rope.rotation(position)
        return Reading(slice(start, start + rope.tokens), self._rotations[key])

    def _rotation(self, positions: tuple[float, ...]) -> Rotation:
        if positions not in self._rotations:
            self._rotations[positions] = self.rope.frames(positions)
        return self._rotations[positions]
