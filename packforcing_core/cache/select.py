"""Which bank blocks enter attention: selectors that score every block, and the choice of the best.

A selector gives one score per bank block; the `top_k` highest are chosen, a tie going to the newer block, so a choice
depends only on the scores. All keys and queries here are rotated by height and width and not by time: age alone
neither favours nor hides a block.
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
    """What a layer asks of the bank at the first step of a block.

    `mean_query` [B, heads, head_dim] float32 is taken over the queries of the current and the recent block,
    `running_query` over those of the current and of all blocks that were committed; `queries` [B, L, heads, head_dim]
    are the current block's, rotated for selectors in `READS_QUERIES` only. `blocks` are candidates, of which `count`
    will be chosen, `mean_keys` [candidates, B, heads, head_dim] float32 theirs, and `keys(i)` [B, tokens, heads,
    head_dim] all keys of candidate i.
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


Scores = Sequence[float] | Tensor
Selector = Callable[[Question], Scores]
"""Scores that come from the device stay there, a tensor [candidates] float32."""


def choose(scores: Scores, blocks: Sequence[int], top_k: int) -> tuple[int, ...]:
    """The `top_k` blocks of the highest scores in order of time; ties go to the newer block."""
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
    """phi by what is being made, and what was just made."""
    return affinity(question.mean_query, question.mean_keys)


def future_affinity(question: Question) -> Tensor:
    """phi by the running mean of all queries, which Future Forcing (arXiv 2605.30083) takes for those of the future:
    without their rotation in time queries hardly change over a video.
    """
    return affinity(question.running_query, question.mean_keys)


def mean_and_newest(question: Question) -> Tensor:
    """The newest blocks for half of the places, rounded down, and phi for the others.

    What was seen says what comes back, what came after it how long ago that was: without the newest blocks the gap
    behind what was selected is closed, and it looks as if it had just left.
    """
    newest = sorted(question.blocks)[len(question.blocks) - question.count // 2 :]
    scores = mean_affinity(question)
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
    """Chance, keyed by (seed, block, layer, candidate)."""
    key = f"{question.seed}/{question.block}/{question.layer}"
    digests = (hashlib.blake2b(f"{key}/{block}".encode(), digest_size=6).digest() for block in question.blocks)
    return [float(int.from_bytes(digest, "little")) for digest in digests]


SELECTORS: dict[str, Selector] = {
    "mean": mean_affinity,
    "mean+newest": mean_and_newest,
    "future": future_affinity,
    "attention_mass": attention_mass,
    "recency": recency,
    "random": random_score,
}
READS_QUERIES = {"attention_mass"}
"""Selectors that read every query; the others read means, so nobody has to rotate the queries for them."""
NO_SELECTOR = "none"
"""Selects nothing, so a plan with it has no mid at all."""
