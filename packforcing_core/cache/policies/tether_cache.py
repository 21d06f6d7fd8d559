"""TetherCache (arXiv 2606.13035): sink, recent frames, and between them a selection of whole frames.

Frames are kept for relevance and diversity. When frames leave the recent ones, they compete with the kept frames at
the block's first step. With s_i the mean of q.k / sqrt(d) over the current queries, heads and frame i's keys,

    mass = softmax(s),  score_i = mass_i + diversity max(0, 1 - max_j exp(-|t_i - t_j| / width) mass_j),  j not i,

where width is half the time between the oldest and the newest candidate, at least one frame. The highest scores stay.
A newly kept frame is aligned with the statistics of the sink and the kept frames (`moments.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import PackForcingError
from ...queued import to_device
from ...rope import GridRope, Rotation
from ..layer_kv import KVShape
from ..moments import aligned, empty_moments, measured, moments_bytes, pooled
from ..partitions import BlockWindow, Partitions, PruningPlan
from ..policy import Policy, int8_knob, knob, packing
from ..queries import Queries
from ..rule import KV, Past, Rule, counts_current


@dataclass(frozen=True)
class TetherCache(Policy):
    name = "tether_cache"
    title = "TetherCache"
    keeps = "a small sink, the newest frames, and kept frames in between that are relevant and spread over time"

    sink_frames: int = knob(3, "The first latent frames, always in view.")
    recent_frames: int = knob(4, "The newest latent frames, current block included.", minimum=1)
    memory_frames: int = knob(14, "Latent frames that are kept between sink and recent frames.", minimum=1)
    diversity: float = knob(
        0.35, "How much a frame gains by being far in time from other relevant frames.", maximum=100, advanced=True
    )
    alignment: float = knob(
        0.35,
        "Shifts the keys and values of a newly kept frame towards the statistics of the sink and of the kept frames, "
        "to reduce drift. 0: off.",
        maximum=1,
        advanced=True,
    )
    kv_int8: str = int8_knob("sink", "recent")

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        self.block_by_block(current_blocks, "chooses frames at the first step of each block")
        counts_current(self.name, self.recent_frames, frames_per_block)
        budget = self.sink_frames + self.memory_frames + self.recent_frames
        plan = Admission(budget + 1, budget, self.recent_frames, self.diversity, self.alignment)
        tail = plan.past_limit(frames_per_block) - self.sink_frames
        return Partitions(frames_per_block, self.sink_frames, tail, "window", pruning=plan, **packing(self.kv_int8))


@dataclass(frozen=True)
class Admission(PruningPlan):
    """Drops frames whenever the frames in view would exceed the budget."""

    diversity: float
    alignment: float

    def query_frames(self, frames_per_block: int) -> int:
        return 0

    def extra_bytes(self, shape: KVShape, partitions: Partitions) -> int:
        return shape.layers * moments_bytes(partitions.past_frames, shape.batch, shape.heads, shape.head_dim)

    def build(self, partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device) -> FrameMemory:
        return FrameMemory(self, partitions, shape, rope, device)


def admitted(relevance: Tensor, frames: Sequence[int], count: int, diversity: float) -> tuple[int, ...]:
    """Which `count` candidates stay, in order of time, as indices into `relevance` [n] and their `frames`; ties go to
    the newer.
    """
    mass = relevance.cpu().double().softmax(dim=0)
    times = torch.tensor(frames, dtype=torch.float64)
    width = max(1.0, 0.5 * (times.max() - times.min() + 1).item())
    likeness = (-(times[:, None] - times).abs() / width).exp().fill_diagonal_(0)
    redundancy = (likeness * mass).amax(dim=1)
    scores = (mass + diversity * (1 - redundancy).clamp(min=0)).tolist()
    best = sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)[:count]
    return tuple(sorted(best))


class FrameMemory(Rule):
    """Selects among a layer's candidate frames, shows the selected ones, and drops the others at the commit."""

    def __init__(self, plan: Admission, partitions: Partitions, shape: KVShape, rope: GridRope, device: torch.device):
        self._plan, self._rope = plan, rope
        self._sink, self._past_frames = partitions.sink_frames, partitions.past_frames
        self._memory = plan.budget_frames - plan.recent_frames - partitions.sink_frames
        self._past_recent = plan.recent_frames - partitions.frames_per_block
        sizes = partitions.past_frames, shape.batch, shape.heads, shape.head_dim
        # For each slot after the sink, in order of time: the frame of the video that it holds.
        self._moments = [empty_moments(*sizes, device) for _ in range(shape.layers)]
        self._frames: list[list[int]] = [[] for _ in range(shape.layers)]
        self._shown: list[Sequence[int] | None] = [None] * shape.layers

    @property
    def nbytes(self) -> int:
        return sum(moments.nbytes for moments in self._moments)

    def choose(
        self, layer: int, kv: KV, window: BlockWindow, queries: Queries, block: int, writes: bool = False
    ) -> tuple[int, ...]:
        """Which candidate frames stay, by the current queries; neither these nor the keys are rotated in time."""
        candidates = slice(self._sink, len(window.past) - self._past_recent)
        q = queries.plain
        query = queries.frame_sums.sum(dim=1) / q.shape[1]
        means = self._moments[layer][candidates, 0]
        relevance = torch.einsum("bhd,nbhd->n", query, means) / (query[..., 0].numel() * math.sqrt(q.shape[-1]))
        return admitted(relevance, self._frames[layer][candidates], self._memory, self._plan.diversity)

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> tuple[int, ...]:
        """Repeats a selection of an earlier run. Raises PackForcingError if it does not fit this past."""
        candidates = len(window.past) - self._sink - self._past_recent
        if len(choice) != self._memory or not all(0 <= frame < candidates for frame in choice):
            raise PackForcingError(
                f"The recorded selection {list(choice)} does not fit: expected {self._memory} kept frames out of "
                f"{candidates}. It was recorded with other settings of the policy."
            )
        return tuple(choice)

    def show(self, layer: int, kv: KV, window: BlockWindow, choice: Sequence[int]) -> None:
        """Copies the selected frames, new ones aligned, and the recent frames to the slots after the sink."""
        if self._shown[layer] is choice:
            return
        target, source = self._rows(kv, window, choice)
        kv.show_tokens(target, source, self._times(0, self._memory + self._past_recent))
        for place, frame in self._new(choice):
            rows = kv.candidates(place, 1, source.device)
            kv.show_changed(rows, self._times(place, 1), partial(self._aligned, layer, kv, frame))
        self._shown[layer] = choice

    def drop(self, layer: int, kv: KV, window: BlockWindow, choice: Sequence[int]) -> None:
        """Makes the stored past equal to what `show` shows."""
        target, source = self._rows(kv, window, choice)
        changed = [(place, *self._aligned(layer, kv, frame)) for place, frame in self._new(choice)]
        kv.keep_tokens(target, source)
        past = len(window.past)
        order = [*range(self._sink), *(self._sink + j for j in choice), *range(past - self._past_recent, past)]
        moments = self._moments[layer]
        moments[: len(order)] = moments[to_device(torch.tensor(order), moments.device)]
        for place, keys, values in changed:
            kv.rewrite(kv.candidates(place, 1, source.device), keys, values)
            moments[self._sink + place] = measured(keys, values)
        self._frames[layer] = [self._frames[layer][place] for place in order]
        self._shown[layer] = None

    def store(self, layer: int, kv: KV, first: int, following: Past, timeless: Tensor, v: Tensor) -> None:
        frames = self._frames[layer]
        n = kv.tokens_per_frame
        for i, (keys, values) in enumerate(zip(timeless.split(n, dim=1), v.split(n, dim=1), strict=True)):
            if len(frames) < self._past_frames:
                self._moments[layer][len(frames)] = measured(keys, values)
                frames.append(first + i)

    def restart(self, frames: int) -> None:
        self._frames = [[] for _ in self._frames]

    def _new(self, choice: Sequence[int]) -> list[tuple[int, int]]:
        """(slot after the sink, candidate) of the newly kept frames; the first candidates are kept frames already."""
        return [(place, frame) for place, frame in enumerate(choice) if frame >= self._memory and self._plan.alignment]

    def _aligned(self, layer: int, kv: KV, candidate: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a newly kept candidate, aligned with the previous statistics of sink and kept frames."""
        trusted = self._moments[layer][: self._sink + self._memory]
        rows = kv.candidates(candidate, 1, trusted.device)
        pool = pooled(trusted, [kv.tokens_per_frame] * len(trusted))
        return aligned(kv.timeless_keys(rows), kv.ring_values(rows), pool, self._plan.alignment)

    def _rows(self, kv: KV, window: BlockWindow, choice: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The target rows and the source rows of the frames after the sink."""
        device, past = self._moments[0].device, len(window.past) - self._sink
        every = kv.candidates(0, past, device).view(past, -1)
        kept = to_device(torch.tensor([*choice, *range(past - self._past_recent, past)]), device)
        return every[: len(kept)].flatten(), every[kept].flatten()

    def _times(self, place: int, frames: int) -> Rotation:
        """Rotation in time of `frames` frames, from the `place`-th after the sink on."""
        return self._rope.frame_times(range(self._sink + place, self._sink + place + frames))
