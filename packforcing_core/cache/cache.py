"""The key/value cache of a render: one view to read per block, one commit to write.

    cache = KVCache(partitions, shape, rope, attention, device)
    view = cache.begin_block()            # this block's window
    flow = model.flow(x, ..., view)       # denoising steps read through the view
    with cache.commit(view) as writer:    # the clean block's keys and values become the past
        model.commit(x0, ..., writer)
    if cache.due_block is not None:        # a block has left the recent frames
        with cache.commit_compressed() as writer:
            model.commit_tokens(tokens, ..., writer)

Views and writers are each a `History` (`history.py`): a model pass cannot tell them apart, and reading cannot change
the past.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..attention import Attention
from ..errors import PackForcingError
from ..rope import GridRope, Rotation, rotate, rotate_into
from .layer_kv import KVShape, LayerKV, ring_slices
from .ledger import Ledger, Selection
from .mid import Choice, MidMemory
from .packed import PackedKV, Workspace
from .partitions import PRUNED, BlockWindow, Partitions
from .queries import Queries
from .queued_choice import Queued
from .rule import KV, Rule


class KVCache(Ledger):
    """Preallocated keys and values of all layers, laid out by one `Partitions` plan."""

    def __init__(
        self,
        partitions: Partitions,
        shape: KVShape,
        rope: GridRope,
        attention: Attention,
        device: torch.device | str = "cpu",
    ):
        super().__init__(partitions)
        self.shape = shape
        self.rope = rope
        self.attention = attention
        self.device = torch.device(device)
        self.workspace = Workspace(shape, partitions, rope, device) if partitions.packed else None
        self.layers: list[KV] = [self._build_layer() for _ in range(shape.layers)]
        # Keys that are stored rotated for their position; the other layouts rotate keys at every read.
        self._turned = [layer for layer in self.layers if isinstance(layer, LayerKV)]
        bank = partitions.bank
        self.mid = MidMemory(bank, partitions, shape, rope, self.device, self.banked) if bank else None
        plan = partitions.rule
        self.rule: Rule = plan.build(partitions, shape, rope, self.device) if plan else Rule()
        self._position_of_slot: dict[int, float] = {}
        self._torn = False

    def _build_layer(self) -> KV:
        if self.workspace is None:
            return LayerKV(self.shape, self.partitions, self.device)
        return PackedKV(self.shape, self.partitions, self.workspace, self.device)

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the device, equal to `shape.buffer_bytes(partitions)`."""
        shared = self.workspace.nbytes if self.workspace else 0
        beside = self.rule.nbytes + (self.mid.device_bytes if self.mid else 0)
        return shared + sum(layer.nbytes for layer in self.layers) + beside

    @property
    def host_nbytes(self) -> int:
        """Bytes of the bank in system RAM, equal to `shape.host_bytes(partitions)`."""
        return self.mid.compressed_bytes if self.mid and self.partitions.bank_on_host else 0

    def begin_block(self, selection: Selection | None = None, blocks: int = 1) -> BlockView:
        """The view for the next block. The keys of frames whose position changed are rotated again, from unrotated
        keys.

        `selection` repeats what this block selected in an earlier run. Without it each layer selects from its first
        queries. With `blocks` > 1 (at most the plan's `current_blocks`) the view is for several blocks that attend to
        each other. It is read-only and valid until the next call.
        """
        if self._torn:
            raise PackForcingError(
                "A cache write was interrupted, so the cache no longer matches any block. "
                "Create a new cache and commit the finished blocks again."
            )
        self.require_none_due()
        if selection is not None and len(selection) != self.shape.layers:
            raise PackForcingError(
                f"Got a selection for {len(selection)} layers; this cache has {self.shape.layers}. "
                "It was recorded with another model."
            )
        if not 1 <= blocks <= self.partitions.current_blocks:
            raise PackForcingError(
                f"Got a view of {blocks} blocks; this cache has room for {self.partitions.current_blocks}. "
                "Plan it with the policy's partitions(frames_per_block, current_blocks)."
            )
        window = self.window(blocks)
        if self._turned:
            self._show_past(window)
        return BlockView(self, window, self.next_block, selection)

    def _show_past(self, window: BlockWindow) -> None:
        """Re-rotates keys whose position changed, and copies the ring frames that a rolling window sees to the slots in
        front of the current blocks. The ring itself stays unchanged.
        """
        for slot, position in ((p.slot, p.position) for p in window.past):
            if self._position_of_slot[slot] != position:
                rotation = self.rope.frame_times([position])
                for layer in self._turned:
                    layer.move(slot, rotation)
                self._position_of_slot[slot] = position
        moves = self.partitions.clock == "window"
        for index, placement in enumerate(window.copied):
            turned = self.rope.frame_times([placement.position]) if moves else None
            for layer in self._turned:
                layer.show_copy(window, index, turned)

    @contextmanager
    def commit(self, view: BlockView) -> Iterator[BlockWriter]:
        """A writer for the pass over the clean block of `view`. The block joins the past when the pass ends without an
        error.
        """
        if len(view.window.current_positions) != self.partitions.frames_per_block:
            raise PackForcingError("Several blocks cannot be committed at once; begin a view of the first block alone.")
        view.write()
        writer = BlockWriter(view)
        self._torn = True
        yield writer
        self._torn = False
        self._position_of_slot.update((p.slot, p.position) for p in (*writer.kept, *writer.rewritten))
        self.count_block(view.block, view.selection() if self.mid else ())

    @contextmanager
    def commit_compressed(self) -> Iterator[CompressedWriter]:
        """A writer for the pass over the compressed tokens of block `due_block`, which then is in the bank."""
        slot, choices = self.take_due()
        assert self.mid is not None
        writer = CompressedWriter(self, self.mid, slot, choices)
        self._torn = True
        yield writer
        self._torn = False
        self.count_compressed(slot)

    def rows_of(self, window: BlockWindow, past: Sequence[int]) -> Tensor:
        """Of what the next block attends to in `window`: the rows of these frames of `window.past`, and its own."""
        n, first = self.shape.tokens_per_frame, self.partitions.past_frames - window.past_frames
        slots = sorted(window.past[index].slot - first for index in past)
        own = range(window.past_frames, window.past_frames + len(window.current_positions))
        return torch.cat([torch.arange(slot * n, (slot + 1) * n, device=self.device) for slot in (*slots, *own)])

    def _forget(self) -> None:
        self.rule.forget()
        if self.mid:
            self.mid.forget()
        super()._forget()

    def _begin_with(self, blocks: tuple[int, ...]) -> None:
        super()._begin_with(blocks)
        self._position_of_slot.clear()
        self.rule.restart(len(blocks) * self.partitions.frames_per_block)


class BlockView:
    """A window on the cache for the denoising steps of one or several blocks. It never writes to the stored past.

    `block` is the first block's index in the video. What a layer selects from its first queries holds for all steps;
    for some selectors the commit selects again.
    """

    def __init__(self, cache: KVCache, window: BlockWindow, block: int, selection: Selection | None):
        self.cache = cache
        self.window = window
        self.block = block
        self.first_frame = cache.committed_frames
        self.rotation = cache.rope.frames(window.current_positions)
        self.choices: dict[int, Any] = {}
        self._told, self._writes = selection is not None, False
        ends = cache.ends_only(window)
        self._rows = None if ends is None else cache.rows_of(window, ends)
        self._chooser: Rule | MidMemory | None = (cache.mid or cache.rule) if window.chooses else None
        if self._chooser and selection is not None:
            self.choices = {i: self._chooser.repeated(choice, window) for i, choice in enumerate(selection)}

    def write(self) -> None:
        """Called before the pass that writes the block. Layers then select again if the selector demands it, unless
        they were given their selection.
        """
        self._writes = True
        if self.cache.selects_again and not self._told:
            self.choices = {}

    def selection(self) -> Selection:
        """What each layer selected. If the device selected, the host waits here, once for all layers."""
        known = {layer: self._known(choice) for layer, choice in self.choices.items() if not isinstance(choice, Tensor)}
        chosen = {layer: choice for layer, choice in self.choices.items() if isinstance(choice, Tensor)}
        if chosen and len({len(choice) for choice in chosen.values()}) == 1:
            rows = torch.stack(tuple(chosen.values())).tolist()
        else:
            rows = [choice.tolist() for choice in chosen.values()]
        known.update({layer: array("i", row) for layer, row in zip(chosen, rows, strict=True)})
        return tuple(known.get(layer, ()) for layer in range(self.cache.shape.layers))

    def _known(self, choice: Sequence[int] | Queued) -> Sequence[int]:
        if not isinstance(choice, Queued):
            return choice
        return self.cache.mid.known(choice) if self.cache.mid else choice.blocks

    def queries(self, q: Tensor) -> Queries:
        """The queries of a layer, with this view's positions."""
        return Queries(q, self.cache.rope, self.window.current_positions, self.rotation)

    def choose(self, layer: int, queries: Queries) -> None:
        """Makes the selection of `layer` from its queries, once per block, and copies the selected keys to where they
        are read.
        """
        if self._chooser:
            kv = self.cache.layers[layer]
            if layer not in self.choices:
                self.choices[layer] = self._chooser.choose(layer, kv, self.window, queries, self.block, self._writes)
            self._chooser.show(layer, kv, self.window, self.choices[layer])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend_with(layer, self.queries(q), k, v)

    def attend_with(self, layer: int, queries: Queries, k: Tensor, v: Tensor) -> Tensor:
        """`attend` for a caller that needs the `queries` again."""
        self.choose(layer, queries)
        keys, values = self.cache.layers[layer].seen(self.window)
        rotate_into(keys[:, -k.shape[1] :], k, self.rotation)
        values[:, -k.shape[1] :] = v
        if self._rows is not None:
            keys, values = keys[:, self._rows], values[:, self._rows]
        return self.cache.attention(queries.turned, keys, values)


class BlockWriter:
    """A view that also stores the block: after a layer has attended, its keys and values take their slots in the past.

    Because it writes layer by layer, no second copy of the block is needed. What is overwritten is out of view already.
    """

    def __init__(self, view: BlockView):
        self._view = view
        self._cache = view.cache
        partitions = self._cache.partitions
        self._first = first = view.first_frame
        self._following = self._cache.window_after(first + partitions.frames_per_block).past
        self.kept = [placement for placement in self._following if placement.frame >= first]
        self.rewritten = [placement for placement in self._following if placement.frame == PRUNED]
        self._spatial = self._cache.rope.spatial(partitions.frames_per_block)
        self._times: dict[int, Rotation] = {
            kept.slot: self._cache.rope.frame_times([kept.position]) for kept in self.kept
        }

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = self._view.queries(q)
        out = self._view.attend_with(layer, queries, k, v)
        self._store(layer, queries, k, v)
        return out

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        queries = self._view.queries(q)
        self._view.choose(layer, queries)
        self._store(layer, queries, k, v)

    def _store(self, layer: int, queries: Queries, k: Tensor, v: Tensor) -> None:
        kv = self._cache.layers[layer]
        rule = self._cache.rule
        if self._view.window.pruned_frames is not None:
            rule.drop(layer, kv, self._view.window, self._view.choices[layer])
        timeless = rotate(k, self._spatial)
        rule.store(layer, kv, self._first, self._following, timeless, v)
        for kept in self.kept:
            rows = kv.tokens(kept.frame - self._first)
            kv.put_frame(kept.slot, timeless[:, rows], v[:, rows], self._times[kept.slot])
        rule.stored(layer, kv, self._first, self._following)
        self._store_queries(layer, kv, queries, timeless, v)

    def _store_queries(self, layer: int, kv: KV, queries: Queries, timeless: Tensor, v: Tensor) -> None:
        """Stores one sum of queries per frame, in a ring of its own, for selection from the bank."""
        newest = min(self._cache.partitions.query_frames, self._cache.partitions.frames_per_block)
        if not newest:
            return
        sums = queries.frame_sums
        end = self._first + self._cache.partitions.frames_per_block
        for slots, frames in ring_slices(end - newest, newest, self._cache.partitions.query_frames):
            kv.query_sums[:, slots] = sums[:, -newest:][:, frames]
        if self._cache.mid:
            self._cache.mid.store(layer, kv.tokens_per_frame, self._first, sums.sum(dim=1), timeless, v)


class CompressedWriter:
    """The pass over a block's compressed tokens. They attend to the sink, to themselves, and to those mid blocks that
    the block had selected and that are still in the bank. Each layer's keys and values are written to the bank.

    Their positions come right after those mid blocks.
    """

    def __init__(self, cache: KVCache, mid: MidMemory, slot: int, choices: Sequence[Choice]):
        self._cache = cache
        self._mid = mid
        self._slot = slot
        self._choices = choices

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv, rope, choice = self._cache.layers[layer], self._mid.compressed_rope, self._choices[layer]
        first, span = self._cache.partitions.sink_frames, self._mid.plan.mid_span
        self._mid.show_at(layer, kv, [first + i * span for i in range(len(choice))], choice)
        # The next layer's blocks are copied while this layer computes; there is no next layer for the last one.
        if layer + 2 < len(self._choices):
            self._mid.fetch(layer + 1, self._cache.layers[layer + 1], self._choices[layer + 1])
        position = first + len(choice) * span
        keys, values = kv.seen_by_compressed(len(choice))
        timeless = rope.spatial(k)
        rotate_into(keys[:, -k.shape[1] :], timeless, rope.time(position))
        values[:, -k.shape[1] :] = v
        out = self._cache.attention(rope.at(position, rope.spatial(q)), keys, values)
        self._mid.write(layer, self._slot, timeless, v)
        return out

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._mid.write(layer, self._slot, self._mid.compressed_rope.spatial(k), v)
