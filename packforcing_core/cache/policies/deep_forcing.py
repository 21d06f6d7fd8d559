"""Deep Forcing (arXiv 2512.05081): a deep sink, and Participative Compression of the frames after it.

At the first step of a block with a full window, each layer scores every candidate token j by phi_j = sum over recent
queries r of q_r.k_j = (sum of q_r).k_j, summed over heads. Keys and queries are rotated for their positions before
tokens are dropped. The best tokens stay, in order of time, in whole slots right after the sink. The view only shows the
selection; the stored past changes when the block is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import PackForcingError
from ...rope import GridRope, Rotation, rotate
from ..layer_kv import KVShape, ring_slices
from ..partitions import BlockWindow, Partitions, PruningPlan
from ..policy import Policy, int8_knob, knob, packing
from ..queries import Queries
from ..rule import KV, Rule, counts_current


@dataclass(frozen=True)
class DeepForcing(Policy):
    name = "deep_forcing"
    title = "Deep Forcing"
    keeps = "a deep sink, the newest frames, and the most attended tokens of everything in between"

    sink_frames: int = knob(10, "The first latent frames, always in view.")
    recent_frames: int = knob(
        4, "The newest latent frames, current block included, of which no token is dropped.", minimum=1
    )
    budget_frames: int = knob(
        16,
        "How many latent frames' worth of tokens remain in view after tokens are dropped; sink and current block count "
        "too.",
        minimum=1,
    )
    window_frames: int = knob(
        21, "Tokens are dropped when this many latent frames are in view; sink and current block count too.", minimum=1
    )
    kv_int8: str = int8_knob("sink", "recent")

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        self.block_by_block(current_blocks, "drops tokens at the first step of each block")
        counts_current(self.name, self.recent_frames, frames_per_block)
        if not self.sink_frames + self.recent_frames <= self.budget_frames <= self.window_frames:
            raise PackForcingError(
                f"Policy 'deep_forcing': budget_frames is {self.budget_frames}; expected at least sink_frames + "
                f"recent_frames ({self.sink_frames} + {self.recent_frames}) and at most window_frames "
                f"({self.window_frames})."
            )
        pruning = Participative(self.window_frames, self.budget_frames, self.recent_frames)
        tail = pruning.past_limit(frames_per_block) - self.sink_frames
        return Partitions(frames_per_block, self.sink_frames, tail, "window", pruning=pruning, **packing(self.kv_int8))


@dataclass(frozen=True)
class Participative(PruningPlan):
    def build(self, partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device) -> TokenPruning:
        return TokenPruning(self, partitions, shape, rope)


def choose_tokens(query: Tensor, keys: Tensor, count: int) -> Tensor:
    """Indices [count], ascending, of the keys with the largest dot product with the query; ties go to the newer key.

    `query` [B, heads, head_dim] float32 is a sum of queries, `keys` [B, candidates, heads, head_dim].
    """
    scores = torch.einsum("bhd,bkhd->k", query, keys.float())
    newest_first = scores.flip(0).sort(descending=True, stable=True).indices[:count]
    return (len(scores) - 1 - newest_first).sort().values


class TokenPruning(Rule):
    """Selects among a layer's candidate tokens, shows the selected ones, and drops the others at the commit."""

    def __init__(self, plan: PruningPlan, partitions: Partitions, shape: KVShape, rope: GridRope):
        self._rope = rope
        self._sink = partitions.sink_frames
        self._kept_frames = plan.budget_frames - plan.recent_frames - partitions.sink_frames
        self._past_recent = plan.recent_frames - partitions.frames_per_block
        self._shown: list[Tensor | None] = [None] * shape.layers
        self._tables: dict[int, Rotation] = {}

    def _times(self, frames: int) -> Rotation:
        """Rotation in time of the `frames` frames after the sink."""
        if frames not in self._tables:
            self._tables[frames] = self._rope.frame_times(range(self._sink, self._sink + frames))
        return self._tables[frames]

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> Tensor:
        """Repeats a selection of an earlier run."""
        return torch.tensor(choice, dtype=torch.long, device=self._rope.device)

    def choose(
        self, layer: int, kv: KV, window: BlockWindow, queries: Queries, block: int, writes: bool = False
    ) -> Tensor:
        """Indices of the candidate tokens that stay, selected by the current queries."""
        past = len(window.past)
        candidates = past - self._sink - self._past_recent
        sums = queries.frame_sums
        rows = kv.candidates(0, candidates, sums.device)
        keys = rotate(kv.timeless_keys(rows), self._times(candidates))
        query = rotate(sums, self._rope.time(range(past, past + sums.shape[1]))).sum(dim=1)
        if self._past_recent:
            frames = range(past - self._past_recent, past)
            newest = ring_slices(window.past[frames[0]].frame, self._past_recent, self._past_recent)
            before = torch.cat([kv.query_sums[:, slots] for slots, _ in newest], dim=1)
            query = query + rotate(before, self._rope.time(frames)).sum(dim=1)
        return choose_tokens(query, keys, self._kept_frames * kv.tokens_per_frame)

    def show(self, layer: int, kv: KV, window: BlockWindow, kept: Tensor) -> None:
        """Copies the kept tokens and the recent frames to the slots after the sink."""
        if self._shown[layer] is kept:
            return
        source = self._source(kv, window, kept)
        frames = self._kept_frames + self._past_recent
        kv.show_tokens(kv.candidates(0, frames, source.device), source, self._times(frames))
        self._shown[layer] = kept

    def drop(self, layer: int, kv: KV, window: BlockWindow, kept: Tensor) -> None:
        """Makes the stored past equal to what `show` shows."""
        source = self._source(kv, window, kept)
        kv.keep_tokens(kv.candidates(0, self._kept_frames + self._past_recent, source.device), source)
        self._shown[layer] = None

    def _source(self, kv: KV, window: BlockWindow, kept: Tensor) -> Tensor:
        candidates = len(window.past) - self._sink - self._past_recent
        every = kv.candidates(0, len(window.past) - self._sink, kept.device)
        return torch.cat((every[: candidates * kv.tokens_per_frame][kept], every[candidates * kv.tokens_per_frame :]))
