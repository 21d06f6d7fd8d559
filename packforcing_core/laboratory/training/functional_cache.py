"""The differentiable KV cache of training. It executes the same plan as `KVCache`, but never writes to its tensors.

    cache = FunctionalCache(partitions, layers, rope, attention)
    view = cache.begin_block()
    flow = model.flow(x, ..., view)       # with or without a graph, any number of times, also after later commits
    with cache.commit(view) as writer:    # stores the block's keys and values detached
        model.commit(x0, ..., writer)
    if cache.due_block is not None:       # stores the compressed block's keys and values with the graph of this pass
        with cache.commit_compressed() as writer:
            model.commit_tokens(tokens, ..., writer)

The interface is that of `KVCache`, so the sampler's `commit_block` and `commit_due_block` work with both. A view keeps
the state of the cache at its beginning: a clip may commit all its clean blocks first and denoise them afterwards, each
through its own view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...attention import Attention, sdpa
from ...cache.config import Policy
from ...cache.ledger import Ledger, Selection
from ...cache.mid import Choice, CompressedRope
from ...cache.partitions import BankPlan, BlockWindow, Partitions, Placement
from ...cache.select import SELECTORS, Question, choose
from ...errors import PackForcingError
from ...model.causal import CausalWan, TextKV
from ...rope import GridRope, Rotation, rotate
from ...sampler.rollout import commit_block
from .parts import Repeatable


class Rows(NamedTuple):
    """One layer's keys and values of a block or a compressed block, [B, L, heads, head_dim]. The keys are rotated by
    height and width only, not by time.

    `query_sums` [B, F, heads, head_dim] float32 are a block's queries, rotated in the same way and summed over each
    frame; empty for compressed blocks.
    """

    k: Tensor
    v: Tensor
    query_sums: Tensor


class Run(NamedTuple):
    """Consecutive frames of one block that are read together: its token rows `first` to `stop`, rotated in time by
    `times`.
    """

    block: int
    first: int
    stop: int
    times: Rotation


class FunctionalCache(Ledger):
    """Executes a `Partitions` plan for a batch of clips. Each selection is made for the whole batch.

    With `recompute`, the keys and values that a compressed block attends to are assembled again for the backward pass,
    instead of being kept for each compressed block and layer.

    Raises PackForcingError for a plan that drops, averages, replaces or aligns keys.
    """

    def __init__(
        self,
        partitions: Partitions,
        layers: int,
        rope: GridRope,
        attention: Attention = sdpa,
        recompute: bool = False,
    ):
        if partitions.rule or (partitions.bank and partitions.bank.alignment):
            raise PackForcingError(
                "A policy that drops, averages, replaces or aligns keys cannot be used for training: these operations "
                "pass no gradient. Choose packforcing, window, sink_window or full for training."
            )
        super().__init__(partitions)
        self.layers, self.rope, self.attention, self.recompute = layers, rope, attention, recompute
        self.bank = partitions.bank
        self.compressed_rope = CompressedRope(rope, self.bank, partitions.frames_per_block) if self.bank else None
        self.tokens_per_frame = rope.grid[0] * rope.grid[1]
        self.spatial = rope.spatial(partitions.frames_per_block)
        # Replaced and never modified, because views keep references to them.
        self.past: Mapping[int, tuple[Rows, ...]] = {}
        self.twins: Mapping[int, tuple[Rows, ...]] = {}
        # By layer: the sum of all committed queries, rotated by height and width, and their number of tokens.
        self.query_totals: Mapping[int, tuple[Tensor, int]] = {}

    @property
    def compressed(self) -> tuple[BankPlan, CompressedRope]:
        """The plan of the compressed blocks and their RoPE coordinates. Raises PackForcingError if the
        policy has none.
        """
        if self.bank is None or self.compressed_rope is None:
            raise PackForcingError("This policy keeps no compressed blocks.")
        return self.bank, self.compressed_rope

    def begin_block(self, selection: Selection | None = None) -> FunctionalView:
        """Returns the view of the next block. `selection` fixes what each layer selects, for example to that of an
        earlier pass.
        """
        self.require_none_due()
        return FunctionalView(self, self.window(), selection)

    @contextmanager
    def commit(self, view: FunctionalView) -> Iterator[FunctionalWriter]:
        """Context manager that gives a writer for the pass over the clean block of `view`; it stores detached keys and
        values.
        """
        view = view.writing()
        writer = FunctionalWriter(view)
        yield writer
        self.count_block(view.block, view.selection())
        rows = {**self.past, view.block: writer.rows()}
        self.past = {block: rows[block] for block in self.blocks_in_view()}
        if self.bank:
            self.query_totals = self._counted(view.block)

    @contextmanager
    def commit_compressed(self) -> Iterator[FunctionalCompressedWriter]:
        """Context manager that gives a writer for the pass over the compressed tokens of block `due_block`; the stored
        keys and values keep their graph.
        """
        slot, choices = self.take_due()
        writer = FunctionalCompressedWriter(self, choices)
        yield writer
        self.count_compressed(slot)
        rows = {**self.twins, self.banked[slot]: writer.rows()}
        self.twins = {block: rows[block] for block in sorted(self.banked)}

    def _counted(self, block: int) -> Mapping[int, tuple[Tensor, int]]:
        """Returns the query totals with the queries of `block`, which was just committed."""
        made = {}
        for layer, rows in enumerate(self.past[block]):
            sums, tokens = rows.query_sums.sum(dim=1), rows.k.shape[1]
            total, counted = self.query_totals.get(layer, (torch.zeros_like(sums), 0))
            made[layer] = total + sums, counted + tokens
        return made

    def runs(self, placements: Sequence[Placement]) -> list[Run]:
        """Merges the placements into as few runs as possible, in order of time."""
        frames = self.partitions.frames_per_block
        ordered = sorted(placements)
        runs = []
        for (block, _), group in groupby(ordered, key=lambda p: (p.frame // frames, p.position - p.frame)):
            run = list(group)
            first = (run[0].frame - block * frames) * self.tokens_per_frame
            times = self.rope.frame_times([p.position for p in run])
            runs.append(Run(block, first, first + len(run) * self.tokens_per_frame, times))
        return runs


def functional_cache(model: CausalWan, rope: GridRope, policy: Policy, frames_per_block: int) -> FunctionalCache:
    """Returns an empty cache of `policy` for the layers of `model`."""
    return FunctionalCache(policy.partitions(frames_per_block), model.config.num_layers, rope, model.attention)


class _OwnGradient(torch.autograd.Function):
    """Identity whose gradient is a copy and not a view.

    The gradients of a concatenation's inputs are views of one tensor. The gradient of a compressed block's values is
    kept until the block's own backward pass. As a view it would keep the gradient of all keys and values of the layer:
    84 MB per layer instead of 7, for blocks of 4 latent frames at 832x480.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clone()


class FunctionalView(Repeatable):
    """The history that one block attends to. Any number of passes may read it, at any time.

    Each layer selects by the queries of its first pass, and later passes use the same selection. `mean_queries` [B,
    heads, head_dim], by layer and detached, are the queries that it selected by.
    """

    def __init__(self, cache: FunctionalCache, window: BlockWindow, selection: Selection | None, writes: bool = False):
        self.cache, self.window, self.block = cache, window, cache.next_block
        self._told, self._writes = selection is not None, writes
        self.past, self.twins, self._query_totals = cache.past, cache.twins, cache.query_totals
        self.rotation = cache.rope.frames(window.current_positions)
        self._runs = cache.runs(window.past)
        self._choices: dict[int, Choice] = {i: tuple(choice) for i, choice in enumerate(selection or ())}
        self.mean_queries: dict[int, Tensor] = {}

    def writing(self) -> FunctionalView:
        """Returns the view for the pass that writes the block: another one if layers then select again. This one stays
        as it is, because a backward pass may read it.
        """
        again = self.cache.selects_again and not self._told
        return FunctionalView(self.cache, self.window, None, writes=True) if again else self

    def selection(self) -> Selection:
        """Returns the blocks that each layer selected; empty for a layer that has not selected yet."""
        return tuple(self._choices.get(layer, ()) for layer in range(self.cache.layers))

    def choose(self, layer: int, q: Tensor) -> Choice:
        """Returns the blocks that `layer` selects. The first call computes them from the queries `q`; later calls
        return the same.
        """
        if not self.window.mid_positions:
            return ()
        if layer not in self._choices:
            self._choices[layer] = self._choose(layer, q)
        return self._choices[layer]

    @torch.no_grad()
    def _choose(self, layer: int, q: Tensor) -> Choice:
        (plan, _), blocks = self.cache.compressed, list(self.twins)
        queries = rotate(q, self.cache.spatial)
        recent = self._recent_query_sums(layer)
        tokens = q.shape[1] + recent.shape[1] * self.cache.tokens_per_frame
        own = queries.float().sum(dim=1)
        mean_query = (own + recent.sum(dim=1)) / tokens
        self.mean_queries[layer] = mean_query
        total, counted = self._query_totals.get(layer, (torch.zeros_like(own), 0))
        running = (own + total) / (q.shape[1] + counted)
        keys = [self.twins[block][layer].k for block in blocks]
        means = torch.stack([k.float().mean(dim=1) for k in keys])
        asked = plan.selector_seed, self.block, layer, running, len(self.window.mid_positions)
        question = Question(mean_query, queries, blocks, means, keys.__getitem__, *asked, writes=self._writes)
        return choose(SELECTORS[plan.selector](question), blocks, len(self.window.mid_positions))

    def affinities(self, layer: int, equal_lengths: bool = False) -> Tensor:
        """Returns [B, compressed blocks]: the affinity phi, without its constant factor, between each clip's mean query
        and each block in `twins`, with the graph of the blocks' keys. `equal_lengths` divides the mean keys of each
        clip by their norm.

        The selection itself has no gradient; the affinities that it is based on have one.
        """
        means = torch.stack([rows[layer].k.float().mean(dim=1) for rows in self.twins.values()])
        if equal_lengths:
            means = means / means.flatten(2).norm(dim=2).clamp_min(1e-12)[..., None, None]
        return torch.einsum("bhd,mbhd->bm", self.mean_queries[layer], means)

    def _recent_query_sums(self, layer: int) -> Tensor:
        """Returns [B, recent frames, heads, head_dim] of whole blocks; plans with a bank always have whole blocks."""
        partitions = self.cache.partitions
        blocks = range(self.block - partitions.query_frames // partitions.frames_per_block, self.block)
        return torch.cat([self.past[block][layer].query_sums for block in blocks], dim=1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = read(self.past, self._runs, layer)
        for block, position in zip(self.choose(layer, q), self.window.mid_positions, strict=True):
            rows = self.twins[block][layer]
            keys.append(self.cache.compressed[1].at(position, rows.k))
            values.append(_OwnGradient.apply(rows.v))
        keys.append(rotate(k, self.rotation))
        values.append(v)
        return self.cache.attention(rotate(q, self.rotation), torch.cat(keys, dim=1), torch.cat(values, dim=1))


def read(past: Mapping[int, tuple[Rows, ...]], runs: Sequence[Run], layer: int) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the keys, rotated in time, and the values of `runs` in one layer."""
    keys = [rotate(past[run.block][layer].k[:, run.first : run.stop], run.times) for run in runs]
    return keys, [past[run.block][layer].v[:, run.first : run.stop] for run in runs]


class Keeper:
    """Base of the writers: collects the rows of each layer during a commit's pass."""

    def __init__(self, layers: int):
        self._kept: list[Rows | None] = [None] * layers

    def rows(self) -> tuple[Rows, ...]:
        kept = tuple(rows for rows in self._kept if rows is not None)
        if len(kept) < len(self._kept):
            missing = [layer for layer, rows in enumerate(self._kept) if rows is None]
            raise PackForcingError(
                f"The commit ended without layers {missing}; run the whole model through the writer."
            )
        return kept


class FunctionalWriter(Keeper):
    """A view whose pass also stores its block, detached."""

    def __init__(self, view: FunctionalView):
        super().__init__(view.cache.layers)
        self._view = view

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = self._view.attend(layer, q, k, v)
        self.keep(layer, q, k, v)
        return out

    @torch.no_grad()
    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._view.choose(layer, q)
        cache = self._view.cache
        sums = rotate(q, cache.spatial).float().unflatten(1, (-1, cache.tokens_per_frame)).sum(dim=2)
        self._kept[layer] = Rows(rotate(k, cache.spatial), v.detach(), sums)


class FunctionalCompressedWriter(Keeper):
    """The writer of a compressed block's pass. The block attends to the sink, to the mid blocks that its block had
    selected and that are still in the bank, and to itself, at the position after them.
    """

    def __init__(self, cache: FunctionalCache, choices: Sequence[Choice]):
        super().__init__(cache.layers)
        self._cache, self._choices = cache, choices
        plan, self._rope = cache.compressed
        self._span = plan.mid_span
        self._twins = cache.twins
        self._sink = cache.runs([Placement(frame, 0, frame) for frame in range(cache.partitions.sink_frames)])
        # Without the recent blocks: the graph of this pass would keep them in memory.
        self._past = {run.block: cache.past[run.block] for run in self._sink}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = self._kept[layer] = self._rows(k, v)
        if self._cache.recompute and torch.is_grad_enabled():
            return checkpoint(self._attended, layer, q, own.k, own.v, use_reentrant=False, preserve_rng_state=False)
        return self._attended(layer, q, own.k, own.v)

    def _attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with queries `q` that are not rotated yet and own keys `k` that are rotated in space only."""
        rope, choice = self._rope, self._choices[layer]
        first, span = self._cache.partitions.sink_frames, self._span
        keys, values = read(self._past, self._sink, layer)
        for index, block in enumerate(choice):
            rows = self._twins[block][layer]
            keys.append(rope.at(first + index * span, rows.k))
            values.append(_OwnGradient.apply(rows.v))
        own = first + len(choice) * span
        query = rope.at(own, rope.spatial(q))
        keys.append(rope.at(own, k))
        values.append(v)
        return self._cache.attention(query, torch.cat(keys, dim=1), torch.cat(values, dim=1))

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._kept[layer] = self._rows(k, v)

    def _rows(self, k: Tensor, v: Tensor) -> Rows:
        return Rows(self._rope.spatial(k), v, k.new_empty(0))


class SideBySide(Repeatable):
    """Combines several views into the history of one pass over their blocks, concatenated. Each block attends to its
    own view only.
    """

    def __init__(self, views: Sequence[FunctionalView]):
        self._views = views

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x.chunk(len(self._views), dim=1) for x in (q, k, v))
        return torch.cat([view.attend(layer, *part) for view, *part in zip(self._views, *parts, strict=True)], dim=1)


def teacher_forced_views(
    model: CausalWan,
    text: list[TextKV],
    cache: FunctionalCache,
    clean: Tensor,
    tokens: Callable[[int], Tensor] | None = None,
) -> list[FunctionalView]:
    """Commits a clean clip [B, 16, F, h, w] to a fresh `cache` and returns the view of every block. Blocks are
    committed without a graph; the compressed form of block i, with hidden tokens `tokens(i)` [B, N_c, D], keeps its
    graph where gradients are enabled.

    Layers select by the queries of the clean blocks.
    """
    *before, _ = clean.split(cache.partitions.frames_per_block, dim=2)
    views = []
    for block in before:
        views.append(cache.begin_block())
        with torch.no_grad():
            commit_block(model, text, cache, views[-1], block, 0.0)
        if tokens is not None and cache.due_block is not None:
            commit_compressed(model, text, cache, tokens(cache.due_block))
    return [*views, cache.begin_block()]


def commit_compressed(model: CausalWan, text: list[TextKV], cache: FunctionalCache, tokens: Tensor) -> None:
    """Commits the due compressed block, with hidden `tokens` [B, N_c, D], to the bank."""
    with cache.commit_compressed() as writer:
        model.commit_tokens(tokens, torch.zeros(tokens.shape[0], 1), text, writer)
