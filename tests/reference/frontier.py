"""TetherCache, MemRoPE and Rolling Sink by brute force, from their papers' formulas: keys are kept without any rotation
and rotated from scratch at every attention; sums go pair by pair, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .memory import in_space, in_time, plain_attention
from .wan import grid_positions, rope


class Oracle:
    """A history of one pass. `begin` a block, then read any number of times, then set `mode` to "commit"."""

    def __init__(self, frames_per_block: int, layers: int, grid: tuple[int, int]):
        self.per_block, self.grid, self.n = frames_per_block, grid, grid[0] * grid[1]
        self.made: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]  # (layer) frame -> (k, v)
        self.mode = "read"

    def begin(self):
        self.mode = "read"

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past, first = self.past(layer, q)
        keys = [self.placed(x, time) for x, _, time in past]
        values = [x for _, x, _ in past]
        own = grid_positions([first + i for i in range(self.per_block)], self.grid)
        out = plain_attention(rope(q, own), torch.cat([*keys, rope(k, own)], 1), torch.cat([*values, v], 1))
        if self.mode == "commit":
            self.commit(layer, k, v)
        return out

    def placed(self, k: Tensor, time: float) -> Tensor:
        return rope(k, grid_positions([time], self.grid))

    def frames(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.n, dim=1))

    def commit(self, layer: int, k: Tensor, v: Tensor):
        self.made[layer] += zip(self.frames(k), self.frames(v), strict=True)

    def past(self, layer: int, q: Tensor):
        """([(keys, values, time)], the time of the pass's own first frame)."""
        raise NotImplementedError


class KeptFrames(Oracle):
    """Any policy that keeps whole frames: `kept` says from how many were made which are seen, and at which times."""

    def __init__(self, kept: Callable[[int], tuple[list[int], list[int]]], *sizes):
        super().__init__(*sizes)
        self.kept = kept

    def past(self, layer, q):
        now = len(self.made[layer])
        frames, times = self.kept(now)
        # The current block follows what is seen, or stands where it is in the video.
        own = now if times == frames else len(frames)
        return [(*self.made[layer][f], float(t)) for f, t in zip(frames, times, strict=True)], float(own)


class RollingSinkOracle(Oracle):
    def __init__(self, window, *sizes):
        super().__init__(*sizes)
        self.window = window

    def past(self, layer, q):
        made, block = self.made[layer], self.per_block
        now, length = len(made), self.window - block
        seen = []
        for frame in range(max(0, now - length), now):
            successor = frame // block * block + block  # The block after this frame's.
            overwritten = successor >= self.window and successor + block <= now
            # There and back again: 0 .. length - 1, length - 1 .. 0.
            lap = [*range(length), *reversed(range(length))]
            seen.append((*made[lap[frame % (2 * length)] if overwritten else frame], float(frame)))
        return seen, float(now)


class MemRoPEOracle(Oracle):
    def __init__(self, sink, recent, rates, *sizes):
        super().__init__(*sizes)
        self.sink, self.recent, self.rates = sink, recent, rates

    def past(self, layer, q):
        made = self.made[layer]
        gone = made[self.sink : max(self.sink, len(made) - self.recent)]
        seen = made[: self.sink]
        if gone:
            seen = seen + [self.average(gone, rate) for rate in self.rates]
        seen = seen + made[max(self.sink, len(made) - self.recent) :]
        return [(*kv, float(i)) for i, kv in enumerate(seen)], float(len(seen))

    def average(self, frames, rate):
        """The running average as the weighted sum that it is: rate (1 - rate)^age, the first frame (1 - rate)^age."""
        weights = [rate * (1 - rate) ** (len(frames) - 1 - i) for i in range(len(frames))]
        weights[0] = (1 - rate) ** (len(frames) - 1)
        sums = (sum(w * frame[part].double() for w, frame in zip(weights, frames, strict=True)) for part in (0, 1))
        return tuple(x.to(frames[0][0].dtype) for x in sums)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each head and channel over all tokens of [B, tokens, heads, d]."""
    mean = x.double().mean(dim=1, keepdim=True)
    return mean, ((x.double() - mean) ** 2).mean(dim=1, keepdim=True).sqrt()


def pulled(x: Tensor, trusted: Tensor, share: float) -> Tensor:
    """(1 - share) x + share (s_t (x - m) / s + m_t); a single token has no deviation, and x - m is 0."""
    (mean, deviation), (trusted_mean, trusted_deviation) = statistics(x), statistics(trusted)
    target = (x.double() - mean) / deviation.clamp(min=1e-30) * trusted_deviation + trusted_mean
    return ((1 - share) * x.double() + share * target).to(x.dtype)


def admission(relevance: list[float], frames: list[int], count: int, weight: float) -> tuple[list[int], float]:
    """The candidates that stay, and by how much the last one won."""
    total = sum(math.exp(s) for s in relevance)
    mass = [math.exp(s) / total for s in relevance]
    width = max(1.0, (max(frames) - min(frames) + 1) / 2)
    scores = []
    for i, frame in enumerate(frames):
        others = (math.exp(-abs(frame - t) / width) * mass[j] for j, t in enumerate(frames) if j != i)
        scores.append(mass[i] + weight * max(0.0, 1 - max(others)))
    order = sorted(range(len(frames)), key=lambda i: (scores[i], i), reverse=True)
    return sorted(order[:count]), scores[order[count - 1]] - scores[order[count]]


class TetherCacheOracle(Oracle):
    """Here a frame is (its index, keys as they stand in space, values), since alignment changes the keys so."""

    def __init__(self, sink, recent, memory, diversity, alignment, *sizes):
        super().__init__(*sizes)
        self.sink, self.recent, self.memory = sink, recent, memory
        self.diversity, self.alignment = diversity, alignment
        self.choices = [None] * len(self.made)
        self.narrowest = math.inf

    def begin(self):
        super().begin()
        self.choices = [None] * len(self.made)

    def placed(self, k, time):
        return rope(k, in_time(grid_positions([time], self.grid)))

    def past(self, layer, q):
        kept = self.made[layer]
        if len(kept) + self.per_block > self.sink + self.memory + self.recent:
            kept = self._admitted(layer, q)
        return [(k, v, float(i)) for i, (_, k, v) in enumerate(kept)], float(len(kept))

    def _admitted(self, layer, q):
        kept = self.made[layer]
        last = len(kept) - (self.recent - self.per_block)
        candidates = kept[self.sink : last]
        if self.choices[layer] is None:
            spatial = in_space(grid_positions([0.0] * self.per_block, self.grid))
            queries = rope(q, spatial).double()
            relevance = [
                (torch.einsum("bqhd,bkhd->bhqk", queries, k.double()) / math.sqrt(q.shape[-1])).mean().item()
                for _, k, _ in candidates
            ]
            chosen = admission(relevance, [frame for frame, *_ in candidates], self.memory, self.diversity)
            self.choices[layer], margin = chosen
            self.narrowest = min(self.narrowest, margin)
        trusted = kept[: self.sink + self.memory]
        pools = [torch.cat([frame[part] for frame in trusted], dim=1) for part in (1, 2)]
        memory = []
        for i in self.choices[layer]:
            frame, k, v = candidates[i]
            if i >= self.memory:
                k, v = pulled(k, pools[0], self.alignment), pulled(v, pools[1], self.alignment)
            memory.append((frame, k, v))
        return [*kept[: self.sink], *memory, *kept[last:]]

    def commit(self, layer, k, v):
        kept = self.made[layer]
        newest = kept[-1][0] + 1 if kept else 0
        if self.choices[layer] is not None:
            kept = self._admitted(layer, None)
        spatial = in_space(grid_positions([0.0], self.grid))
        new = [
            (newest + i, rope(key, spatial), value)
            for i, (key, value) in enumerate(zip(self.frames(k), self.frames(v), strict=True))
        ]
        self.made[layer] = [*kept, *new]


def running_mean_affinity(queries: list[Tensor], keys: Tensor) -> float:
    """Mean over all queries that ever were, heads and keys of q.k / sqrt(d), pair by pair."""
    every = torch.cat(queries, dim=1).double()
    return (torch.einsum("bqhd,bkhd->bhqk", every, keys.double()) / math.sqrt(keys.shape[-1])).mean().item()
