"""The memories of PackForcing and Deep Forcing by brute force: everything ever made is kept without rotation, and every
attention concatenates what may be seen, rotates it from scratch and attends.

Parts in 8 bits are rounded and taken back in float64 whenever they are read, from what was made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.exactness import same_but_for_ties

from .wan import grid_positions, masked_attention, rope


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return masked_attention(q, k, v, torch.ones(q.shape[1], k.shape[1], dtype=torch.bool))


def affinity(queries: Tensor, keys: Tensor) -> float:
    """Mean over batch, heads, all queries and all keys of q.k / sqrt(d), pair by pair, in float64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", queries.double(), keys.double()) / math.sqrt(queries.shape[-1])
    return scores.mean().item()


def at_time(positions: Tensor, time: float | Tensor) -> Tensor:
    """The same rows and columns at another time."""
    moved = positions.clone()
    moved[:, 0] = time
    return moved


def compressed_positions(frames: int, grid: tuple[int, int], span: float) -> Tensor:
    """[N_c, 3] of a twin that starts at time 0: centres of the regions that its tokens stand for."""
    height, width = grid
    rows, columns = max(1, 2 * height // 8), max(1, 2 * width // 8)
    made = []
    for first in range(0, frames, 2):
        pair = range(first, min(first + 2, frames))
        for r in range(rows):
            for c in range(columns):
                time = sum(pair) / len(pair) * span / frames
                made.append((time, (r + 0.5) * height / rows - 0.5, (c + 0.5) * width / columns - 0.5))
    return torch.tensor(made, dtype=torch.float64)


def rounded(x: Tensor, bits: int = 8) -> Tensor:
    """`x` [..., head_dim] after `bits`: round(x / scale) scale, in float64. In 8 bits scale = the largest magnitude of
    a row / 127, in 4 bits that of each 32 numbers / 7, in float16.
    """
    groups = x.double().unflatten(-1, (-1, x.shape[-1] if bits == 8 else 32))
    scale = groups.abs().amax(dim=-1, keepdim=True) / (127 if bits == 8 else 7)
    scale = scale if bits == 8 else scale.half().double()
    codes = torch.where(scale > 0, groups / scale, 0.0).round()
    return (codes * scale).flatten(-2).to(x.dtype)


def in_space(positions: Tensor) -> Tensor:
    return at_time(positions, 0.0)


def in_time(positions: Tensor) -> Tensor:
    only = torch.zeros_like(positions)
    only[:, 0] = positions[:, 0]
    return only


def read_moving(x: Tensor, places: Tensor, bits: int | None) -> Tensor:
    """Keys that are kept as they stand in space, and turned in time when they are read at `places`."""
    return rope(rounded(rope(x, in_space(places)), bits), in_time(places)) if bits else rope(x, places)


class PackForcingOracle:
    """A history (as a model pass holds it) of one pass; `passes` says of which, see `begin`, `commit`, `twin`."""

    def __init__(
        self, frames_per_block, sink_frames, recent_frames, top_k, bank, span, layers, grid, packed=(), gap=0, bits=8
    ):
        self.packed: Sequence[str] = packed
        self.bits = bits
        self.gap = gap
        self.per_block, self.sink, self.recent = frames_per_block, sink_frames, recent_frames
        self.top_k, self.bank, self.span, self.grid = top_k, bank, span, grid
        self.n = grid[0] * grid[1]
        self.made = [{} for _ in range(layers)]  # (layer) frame -> (q, k, v)
        self.compressed = [{} for _ in range(layers)]  # (layer) block -> (k, v)
        self.selected = [{} for _ in range(layers)]  # (layer) block -> chosen blocks; a test may give them
        self.own = [{} for _ in range(layers)]  # (layer) block -> the blocks that it chooses itself
        self.scores = [{} for _ in range(layers)]
        self.block, self.mode = 0, "read"

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.mode == "twin":
            return self._attend_twin(layer, q, k, v)
        first = self.block * self.per_block
        if self.block not in self.own[layer]:
            self.own[layer][self.block] = self._select(layer, q)
            self.selected[layer].setdefault(self.block, self.own[layer][self.block])
        chosen = self.selected[layer][self.block]
        away = max(self.sink, first - self.recent) - self.sink - self.span * len(chosen)
        keys, values, time = self._sink_and_mid(layer, chosen, first, min(self.gap, max(0, away)))
        for frame in range(max(self.sink, first - self.recent), first):
            self._add(keys, values, "recent", *self.made[layer][frame][1:], grid_positions([time], self.grid))
            time += 1
        own = grid_positions([time + i for i in range(q.shape[1] // self.n)], self.grid)
        out = plain_attention(rope(q, own), torch.cat([*keys, rope(k, own)], dim=1), torch.cat([*values, v], dim=1))
        if self.mode == "commit":
            for i in range(self.per_block):
                rows = slice(i * self.n, (i + 1) * self.n)
                self.made[layer][first + i] = q[:, rows], k[:, rows], v[:, rows]
        return out

    def follow(self, selection: Sequence[Sequence[int]]) -> None:
        """Attends in this block to what was selected elsewhere, so that a tie does not show in numbers."""
        for selected, choice in zip(self.selected, selection, strict=True):
            selected[self.block] = list(choice)

    def agrees(self, selection: Sequence[Sequence[int]]) -> bool:
        """Whether this block's selection is the oracle's own in each layer, ties aside."""
        own = [(own[self.block], scores[self.block]) for own, scores in zip(self.own, self.scores, strict=True)]
        return all(same_but_for_ties(choice, *mine) for choice, mine in zip(selection, own, strict=True))

    def _sink_and_mid(self, layer, chosen, first, gap=0):
        keys, values, time = [], [], 0.0
        for frame in range(min(self.sink, first)):
            self._add(keys, values, "sink", *self.made[layer][frame][1:], grid_positions([time], self.grid))
            time += 1
        time += gap
        offsets = compressed_positions(self.per_block, self.grid, self.span)
        for block in chosen:
            self._add(keys, values, "mid", *self.compressed[layer][block], at_time(offsets, offsets[:, 0] + time))
            time += self.span
        return keys, values, time

    def _add(self, keys, values, part: str, k, v, places):
        """Frames that stay where they are (the sink, and recent frames of one block) are rounded as they stand."""
        bits = self.bits if part in self.packed else None
        if part == "sink" or (part == "recent" and self.recent <= self.per_block):
            keys.append(rounded(rope(k, places), bits) if bits else rope(k, places))
        else:
            keys.append(read_moving(k, places, bits))
        values.append(rounded(v, bits) if bits else v)

    def _attend_twin(self, layer, q, k, v):
        chosen = [b for b in self.selected[layer][self.block] if b in self.compressed[layer]]
        keys, values, time = self._sink_and_mid(layer, chosen, self.block * self.per_block)
        offsets = compressed_positions(self.per_block, self.grid, self.span)
        own = at_time(offsets, offsets[:, 0] + time)
        out = plain_attention(rope(q, own), torch.cat([*keys, rope(k, own)], 1), torch.cat([*values, v], 1))
        if len(self.compressed[layer]) == self.bank:
            del self.compressed[layer][min(self.compressed[layer])]
        self.compressed[layer][self.block] = k, v
        return out

    def _select(self, layer, q):
        first = self.block * self.per_block
        spatial = grid_positions([0.0], self.grid)
        queries = [rope(x, spatial) for x in q.split(self.n, dim=1)]
        recent = range(max(self.sink, first - self.recent), first)
        queries += [rope(self.made[layer][frame][0], spatial) for frame in recent]
        offsets = at_time(compressed_positions(self.per_block, self.grid, self.span), 0.0)
        scores = {
            b: affinity(torch.cat(queries, dim=1), rope(k, offsets)) for b, (k, _) in self.compressed[layer].items()
        }
        self.scores[layer][self.block] = scores
        best = sorted(scores, key=lambda b: (scores[b], b), reverse=True)[: self.top_k]
        return sorted(best)


class DeepForcingOracle:
    """Deep Forcing: all tokens of the past in a list per layer, thinned out when the window is full."""

    def __init__(self, frames_per_block, sink, recent, budget, window, layers, grid, packed=()):
        self.packed: Sequence[str] = packed
        self.per_block, self.sink, self.recent = frames_per_block, sink, recent
        self.budget, self.window, self.grid = budget, window, grid
        self.n = grid[0] * grid[1]
        # (layer) tokens: q, k, v [B, tokens, heads, d], place [tokens, 3] with the time of the window.
        self.past = [None] * layers
        self.kept = [None] * layers  # What this block's first step kept, as token indices of the past; or was given.
        self.own = [None] * layers  # What it would keep itself, and the score of each token.
        self.mode = "read"

    def begin(self):
        self.kept = [None] * len(self.kept)
        self.own = [None] * len(self.kept)

    def follow(self, selection: Sequence[Sequence[int]]) -> None:
        """Keeps in this block what was kept elsewhere, so that a tie does not show in numbers."""
        self.kept = [list(choice) or None for choice in selection]

    def agrees(self, selection: Sequence[Sequence[int]]) -> bool:
        """Whether this block kept the oracle's own tokens in each layer, ties aside."""
        pairs = zip(selection, self.own, strict=True)
        return all(same_but_for_ties(choice, *own) if own else not choice for choice, own in pairs)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        empty = q[:, :0], k[:, :0], v[:, :0], torch.zeros(0, 3, dtype=torch.float64)
        past = self.past[layer] or empty
        frames = past[1].shape[1] // self.n
        if frames + self.per_block >= self.window:
            past = self._thin(layer, past, q, frames)
            frames = past[1].shape[1] // self.n
        own = grid_positions([frames + i for i in range(self.per_block)], self.grid)
        everything = [torch.cat(pair, dim=1) for pair in zip(past[:3], (q, k, v), strict=True)]
        places = torch.cat((past[3], own))
        seen_keys = torch.cat((self._keys(past), rope(k, own)), dim=1)
        out = plain_attention(rope(q, own), seen_keys, torch.cat((self._values(past), v), dim=1))
        if self.mode == "commit":
            self.past[layer] = (*everything, places)
        return out

    def _keys(self, past):
        """Keys of the past as they stand in the window; the sink stays there for ever."""
        first = self.sink * self.n
        sink, others = rope(past[1][:, :first], past[3][:first]), past[1][:, first:]
        others = read_moving(others, past[3][first:], 8 if "recent" in self.packed else None)
        return torch.cat((rounded(sink) if "sink" in self.packed else sink, others), dim=1)

    def _values(self, past):
        first = self.sink * self.n
        parts = ("sink", past[2][:, :first]), ("recent", past[2][:, first:])
        return torch.cat([rounded(v) if part in self.packed else v for part, v in parts], dim=1)

    def _thin(self, layer, past, q, frames):
        first, last = self.sink * self.n, (frames - (self.recent - self.per_block)) * self.n
        if self.own[layer] is None:
            queries = rope(q, grid_positions([frames + i for i in range(self.per_block)], self.grid))
            queries = torch.cat((queries, rope(past[0][:, last:], past[3][last:])), dim=1)
            keys = self._keys(past)[:, first:last]
            phi = torch.einsum("bqhd,bkhd->bhqk", queries.double(), keys.double()).sum(dim=(0, 1, 2)).tolist()
            count = (self.budget - self.recent - self.sink) * self.n
            best = sorted(range(len(phi)), key=lambda j: (phi[j], j), reverse=True)[:count]
            self.own[layer] = sorted(best), phi
            if self.kept[layer] is None:
                self.kept[layer] = sorted(best)
        index = [*range(first), *(first + j for j in self.kept[layer]), *range(last, frames * self.n)]
        places = past[3][index].clone()
        places[:, 0] = torch.tensor([i // self.n for i in range(len(index))], dtype=torch.float64)
        return past[0][:, index], past[1][:, index], past[2][:, index], places
