"""Which bank blocks a block attends to: selectors score every block, and the best are selected.

A selector gives one score per bank block. The `top_k` highest are selected; ties go to the newer block, so a selection
depends only on the scores. All keys and queries here are rotated by height and width but not by time, so a block's age
alone has no effect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..queued import to_device

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Question:
    """The inputs of a selector, for one layer at the first step of a block.

    `mean_query` [B, heads, head_dim] float32 is the mean over the queries of the current and the recent block,
    `running_query` that over the current and all committed blocks. `queries` [B, L, heads, head_dim] are the current
    block's; they are rotated for selectors in `READS_QUERIES` only. `blocks` are the candidates, of which `count` are
    selected; `mean_keys` [candidates, B, heads, head_dim] float32 are their mean keys, and `keys(i)` [B, tokens, heads,
    head_dim] all keys of candidate i. `writes`: the pass writes a clean block to the cache; otherwise the block is
    being sampled.
    """

    mean_query: Tensor
    queries: Tensor
    blocks: Sequence[int]
    mean_keys: Tensor
    keys: Callable[[int], Tensor]
    seed: int
    block: int
    layer: int
    running_query: Tensor
    count: int
    writes: bool = False


Scores = Sequence[float] | Tensor
Selector = Callable[[Question], Scores]
"""Scores computed on the device stay there, as a tensor [candidates] float32."""


def choose(scores: Scores, blocks: Sequence[int], top_k: int) -> tuple[int, ...]:
    """The `top_k` blocks with the highest scores, in order of time; ties go to the newer block."""
    if isinstance(scores, Tensor):
        scores = scores.tolist()
    best = sorted(zip(scores, blocks, strict=True), reverse=True)[:top_k]
    return tuple(sorted(block for _, block in best))


def affinity(query: Tensor, mean_keys: Tensor) -> Tensor:
    """phi_m = mean over queries, keys and heads of q.k / sqrt(head_dim): a mean of dot products is the dot product of
    the means.
    """
    batch, heads, head_dim = query.shape
    return torch.einsum("bhd,mbhd->m", query, mean_keys) / (batch * heads * math.sqrt(head_dim))


def mean_affinity(question: Question) -> Tensor:
    """phi with the mean query of the current and the recent block."""
    return affinity(question.mean_query, question.mean_keys)


def future_affinity(question: Question) -> Tensor:
    """phi with the running mean of all queries. Future Forcing (arXiv 2605.30083) uses it as an estimate of future
    queries: without rotation in time, queries hardly change over a video.
    """
    return affinity(question.running_query, question.mean_keys)


def mean_and_newest(question: Question) -> Tensor:
    """The newest blocks for half of the places, rounded down, and phi for the others.

    Selected blocks show what may return; the newest blocks show how long ago it left. Without the newest blocks, no gap
    remains after the selected ones, and the object seems to have left just now.
    """
    return _with_newest(question, mean_affinity(question))


def cosine_and_newest(question: Question) -> Tensor:
    """For a block being sampled: the newest blocks for half of the places, rounded down, and phi with mean keys of
    equal length for the others. For the pass that writes it: phi, by which compressors are trained.

    The mean keys of blocks that show little may be long. With phi such blocks win whatever is asked for. The study
    (`laboratory/study`) has the figures.
    """
    scores = mean_affinity(question)
    if question.writes:
        return scores
    lengths = question.mean_keys.flatten(1).norm(dim=1)
    return _with_newest(question, scores / lengths.clamp(min=torch.finfo(lengths.dtype).tiny))


def _with_newest(question: Question, scores: Tensor) -> Tensor:
    """The scores, with the newest blocks ahead of all others in half of the places, rounded down."""
    newest = sorted(question.blocks)[len(question.blocks) - question.count // 2 :]
    placed = torch.tensor([block in newest for block in question.blocks])
    return scores.masked_fill(to_device(placed, scores.device), math.inf)


def attention_mass(question: Question) -> list[float]:
    """The share of a softmax over all keys of the bank that falls on the block, averaged over the current block's
    queries and heads.
    """
    keys = torch.cat([question.keys(i) for i in range(len(question.blocks))], dim=1).float()
    scale = 1 / math.sqrt(keys.shape[-1])
    mass = torch.zeros(len(question.blocks), dtype=torch.float64)
    for queries in question.queries.float().split(QUERIES_AT_ONCE, dim=1):
        weights = (torch.einsum("bqhd,bkhd->bhqk", queries, keys) * scale).softmax(dim=-1)
        mass += weights.unflatten(-1, (len(question.blocks), -1)).sum(dim=(0, 1, 2, 4)).cpu().double()
    batch, rows, heads, _ = question.queries.shape
    return (mass / (batch * rows * heads)).tolist()


def recency(question: Question) -> list[float]:
    """The newest blocks."""
    return [float(block) for block in question.blocks]


def random_score(question: Question) -> list[float]:
    """A random score, seeded by (seed, block, layer, candidate)."""
    key = f"{question.seed}/{question.block}/{question.layer}"
    digests = (hashlib.blake2b(f"{key}/{block}".encode(), digest_size=6).digest() for block in question.blocks)
    return [float(int.from_bytes(digest, "little")) for digest in digests]


SELECTORS: dict[str, Selector] = {
    "mean": mean_affinity,
    "mean+newest": mean_and_newest,
    "cosine+newest": cosine_and_newest,
    "future": future_affinity,
    "attention_mass": attention_mass,
    "recency": recency,
    "random": random_score,
}
READS_QUERIES = {"attention_mass"}
"""Selectors that read every query. The others read means, so the queries need not be rotated for them."""
WITH_NEWEST = {"mean+newest", "cosine+newest"}
"""Selectors that give half of the places to the newest blocks."""
EQUAL_LENGTHS = {"cosine+newest"}
"""Selectors that compare mean keys of equal length."""
SELECTS_AGAIN = {"cosine+newest"}
"""Selectors that select again when the sampled block is written to the cache."""
NO_SELECTOR = "none"
"""Selects nothing, so a plan with it has no mid at all."""
