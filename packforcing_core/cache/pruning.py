"""Participative Compression of Deep Forcing (arXiv 2512.05081): tokens between sink and recent frames are chosen once
and the others dropped for good.

At the first step of a block that finds the window full, each layer scores every candidate token j by phi_j = sum over
recent queries r of q_r.k_j = (sum of q_r).k_j, summed over heads, keys and queries rotated as they stand in the window
before the drop. The best stay, in order of time, as whole slots right behind the sink. The view only shows that; the
stored past changes when the block is committed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rope import GridRope, Rotation, rotate
from .layer_kv import LayerKV, ring_slices
from .packed import PackedKV
from .partitions import BlockWindow, Partitions


def choose_tokens(query: Tensor, keys: Tensor, count: int) -> Tensor:
    """Indices [count], ascending, of the keys with the largest query.key; a tie goes to the newer (later) key.

    `query` [B, heads, head_dim] float32 is a sum of queries, `keys` [B, candidates, heads, head_dim].
    """
    scores = torch.einsum("bhd,bkhd->k", query, keys.float())
    newest_first = scores.flip(0).sort(descending=True, stable=True).indices[:count]
    return (len(scores) - 1 - newest_first).sort().values


class TokenPruning:
    """Chooses among the candidates of a layer, shows the chosen, and drops the others."""

    def __init__(self, partitions: Partitions, layers: int, rope: GridRope):
        plan = partitions.pruning
        self._rope = rope
        self._sink = partitions.sink_frames
        self._kept_frames = plan.budget_frames - plan.recent_frames - partitions.sink_frames
        self._past_recent = plan.recent_frames - partitions.frames_per_block
        self._frames_per_block = partitions.frames_per_block
        self._shown: list[Tensor | None] = [None] * layers
        self._tables: dict[int, Rotation] = {}

    def _times(self, frames: int) -> Rotation:
        """Rotation in time of the `frames` frames behind the sink."""
        if frames not in self._tables:
            self._tables[frames] = self._rope.frame_times(range(self._sink, self._sink + frames))
        return self._tables[frames]

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> Tensor:
        """A choice of an earlier run, to be made again."""
        return torch.tensor(choice, dtype=torch.long, device=self._rope.device)

    def choose(self, layer: int, kv: LayerKV | PackedKV, window: BlockWindow, q: Tensor, block: int) -> Tensor:
        """Indices of the kept among the candidate tokens, from the current queries `q` [B, L, heads, head_dim]."""
        past = len(window.past)
        candidates = past - self._sink - self._past_recent
        rows = kv.candidates(0, candidates, q.device)
        keys = rotate(kv.timeless_keys(rows), self._times(candidates))
        current = rotate(q, self._rope.frames(range(past, past + self._frames_per_block)))
        query = current.sum(dim=1, dtype=torch.float32)
        if self._past_recent:
            frames = range(past - self._past_recent, past)
            newest = ring_slices(window.past[frames[0]].frame, self._past_recent, self._past_recent)
            sums = torch.cat([kv.query_sums[:, slots] for slots, _ in newest], dim=1)
            query = query + rotate(sums, self._rope.time(frames)).sum(dim=1)
        return choose_tokens(query, keys, self._kept_frames * kv.tokens_per_frame)

    def show(self, layer: int, kv: LayerKV | PackedKV, window: BlockWindow, kept: Tensor) -> None:
        """Makes the slots behind the sink hold the kept tokens and the recent frames."""
        if self._shown[layer] is kept:
            return
        source = self._source(kv, window, kept)
        frames = self._kept_frames + self._past_recent
        kv.show_tokens(kv.candidates(0, frames, source.device), source, self._times(frames))
        self._shown[layer] = kept

    def drop(self, layer: int, kv: LayerKV | PackedKV, window: BlockWindow, kept: Tensor) -> None:
        """Makes the stored past what `show` shows."""
        source = self._source(kv, window, kept)
        kv.keep_tokens(kv.candidates(0, self._kept_frames + self._past_recent, source.device), source)
        self._shown[layer] = None

    def _source(self, kv: LayerKV | PackedKV, window: BlockWindow, kept: Tensor) -> Tensor:
        candidates = len(window.past) - self._sink - self._past_recent
        every = kv.candidates(0, len(window.past) - self._sink, kept.device)
        return torch.cat((every[: candidates * kv.tokens_per_frame][kept], every[candidates * kv.tokens_per_frame :]))
