"""A layer's past with parts in 8 or 4 bits, and the dequantised buffer that all layers share.

    stored by each layer   recent ring | sink | mid slots            quantised, or in the model's dtype
    shared by all layers   [ recent ring | sink | mid slots | copied recent | current ]

Before it attends, a layer dequantises what it sees into the shared buffer. Keys that may change position are stored
without rotation in time and rotated at every read, so each key is rounded only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..queued import to_device
from ..rope import GridRope, Rotation, rotate, rotate_into
from .bank import LayerBank
from .few_bits import Bits, Rows, TokenRows
from .layer_kv import KVShape, RowLayout
from .partitions import BlockWindow, Part, Partitions


class Piece(NamedTuple):
    """Rows of the ring, the rows of the shared buffer that they are copied to, and their rotation in time."""

    source: slice
    target: slice
    rotation: Rotation | None


class Workspace(RowLayout):
    """The shared buffer: `k`, `v` [B, tokens, heads, head_dim] in the model's dtype."""

    def __init__(self, shape: KVShape, partitions: Partitions, rope: GridRope, device: torch.device | str):
        super().__init__(shape, partitions)
        sizes = (shape.batch, shape.buffer_tokens(partitions), shape.heads, shape.head_dim)
        self.k = torch.zeros(sizes, dtype=shape.dtype, device=device)
        self.v = torch.zeros(sizes, dtype=shape.dtype, device=device)
        self.moves = partitions.unrotated_frames > 0
        self._frames_per_block = partitions.frames_per_block
        self._rope = rope
        self._window: BlockWindow | None = None
        self._pieces: list[Piece] = []

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def pieces(self, window: BlockWindow) -> Sequence[Piece]:
        """How the frames of the ring are copied to the shared buffer, the same for all layers."""
        if self._window is not window:
            self._window, self._pieces = window, list(self._planned(window))
        return self._pieces

    def _planned(self, window: BlockWindow) -> Iterator[Piece]:
        positions = {placement.slot: placement.position for placement in window.past}
        first = self._past_frames - window.past_frames
        for slot in range(first, self._ring_frames, self._frames_per_block):  # At most one block at once.
            slots = range(slot, min(slot + self._frames_per_block, self._ring_frames))
            rows = self.tokens(slot, len(slots))
            yield Piece(rows, rows, self._turned([positions[s] for s in slots]))
        for index, placement in enumerate(window.copied):
            yield Piece(self.tokens(placement.slot), self.copy(window, index), self._turned([placement.position]))

    def _turned(self, positions: Sequence[float]) -> Rotation | None:
        return self._rope.frame_times(positions) if self.moves else None


class Pair:
    """Keys and values of the same tokens."""

    def __init__(self, shape: KVShape, tokens: int, bits: Bits | None, device: torch.device | str):
        sizes = (shape.batch, tokens, shape.heads, shape.head_dim)
        self.keys = TokenRows(sizes, shape.dtype, bits, device)
        self.values = TokenRows(sizes, shape.dtype, bits, device)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, rows: Rows, keys: Tensor, values: Tensor) -> None:
        self.keys.write(rows, keys)
        self.values.write(rows, values)

    def bring(self, rows: Rows, target: Rows, rotation: Rotation | None, to: Workspace) -> None:
        """Copies `rows` to the rows `target` of the shared buffer, with the keys rotated by `rotation`."""
        if isinstance(rows, slice) and isinstance(target, slice):
            self.values.read_into(to.v[:, target], rows)
            if rotation is None:
                self.keys.read_into(to.k[:, target], rows)
            else:
                rotate_into(to.k[:, target], self.keys.read(rows), rotation)
            return
        keys = self.keys.read(rows)
        to.v[:, target] = self.values.read(rows)
        to.k[:, target] = keys if rotation is None else rotate(keys, rotation)


class PackedKV(RowLayout):
    """The stored past of one layer, with the interface of `LayerKV`. Frames need not be moved or copied, because each
    read names their positions. Mid keys are stored as in the bank, rotated in space only.
    """

    def __init__(self, shape: KVShape, partitions: Partitions, workspace: Workspace, device: torch.device | str):
        super().__init__(shape, partitions)

        def kept(part: Part, tokens: int) -> Pair:
            return Pair(shape, tokens, partitions.bits_of(part), device)

        n = shape.tokens_per_frame
        self._workspace = workspace
        self._parts = {
            "recent": kept("recent", n * partitions.ring_frames),
            "sink": kept("sink", n * partitions.sink_frames),
            "mid": kept("mid", self._mid_tokens),
        }
        sums = (shape.batch, partitions.query_frames, shape.heads, shape.head_dim)
        self.query_sums = torch.zeros(sums, dtype=torch.float32, device=device)
        # The mid slots in view, in order, with their rotation; then rows of the ring that are shown at other places.
        self._mid_slots: list[int] = []
        self._mid_rows: Tensor
        self._mid_rotation: Rotation
        self._shown_tokens: tuple[Tensor, Tensor, Rotation]
        self._changed: list[tuple[Tensor, Rotation, Callable[[], tuple[Tensor, Tensor]]]] = []

    @property
    def nbytes(self) -> int:
        return sum(pair.nbytes for pair in self._parts.values()) + self.query_sums.nbytes

    def put_frame(self, slot: int, timeless: Tensor, v: Tensor, rotation: Rotation) -> None:
        """As `LayerKV.put_frame`."""
        if slot < self._ring_frames:
            keys = timeless if self._workspace.moves else rotate(timeless, rotation)
            self._parts["recent"].write(self.tokens(slot), keys, v)
        else:  # A sink frame never moves.
            self._parts["sink"].write(self.tokens(slot - self._ring_frames), rotate(timeless, rotation), v)

    def seen(self, window: BlockWindow) -> tuple[Tensor, Tensor]:
        """As `LayerKV.seen`; valid until the next layer's call."""
        rows = self.attended(window)
        ring, buffer = self._parts["recent"], self._workspace
        if window.pruned_frames is None:
            for source, target, rotation in buffer.pieces(window):
                ring.bring(source, target, rotation, buffer)
        else:
            shown, kept, turned = self._shown_tokens
            ring.bring(kept, shown, turned, buffer)
            for changed, turned, made in self._changed:
                keys, values = made()
                buffer.k[:, changed], buffer.v[:, changed] = rotate(keys, turned), values
        self._bring_sink(rows.start)
        self._bring_mid(len(window.mid_positions))
        return buffer.k[:, rows], buffer.v[:, rows]

    def seen_by_compressed(self, mid_blocks: int) -> tuple[Tensor, Tensor]:
        """As `LayerKV.seen_by_compressed`; valid until the next layer's call."""
        rows = self.attended_by_compressed(mid_blocks)
        self._bring_sink(rows.start)
        self._bring_mid(mid_blocks)
        return self._workspace.k[:, rows], self._workspace.v[:, rows]

    def _bring_sink(self, first: int) -> None:
        """Copies the sink's rows to the buffer from row `first` on."""
        ring = self._ring_frames * self.tokens_per_frame
        seen = slice(max(first, ring), self._past_frames * self.tokens_per_frame)
        if seen.start < seen.stop:
            self._parts["sink"].bring(slice(seen.start - ring, seen.stop - ring), seen, None, self._workspace)

    def _bring_mid(self, blocks: int) -> None:
        if blocks:
            self._parts["mid"].bring(self._mid_rows, self.mid(0, blocks), self._mid_rotation, self._workspace)

    def fetch_mid(self, slot: int, bank: LayerBank, bank_slot: int) -> None:
        """Starts copying a compressed block into mid slot `slot`; call `bank.wait` before reading it."""
        first = slot * self._compressed_tokens
        mid = self._parts["mid"]
        bank.fetch_into(bank_slot, mid.keys, mid.values, slice(first, first + self._compressed_tokens))

    def show_mid(self, slots: list[int], rotation: Rotation) -> None:
        """Sets the mid slots in view, in order, with their rotation in time."""
        if self._mid_slots != slots:
            firsts = to_device(torch.tensor(slots), self.query_sums.device) * self._compressed_tokens
            rows = firsts[:, None] + torch.arange(self._compressed_tokens, device=firsts.device)
            self._mid_slots, self._mid_rows = slots, rows.flatten()
        self._mid_rotation = rotation

    def timeless_keys(self, rows: Rows) -> Tensor:
        """As `LayerKV.timeless_keys`."""
        return self._parts["recent"].keys.read(rows)

    def ring_values(self, rows: Rows) -> Tensor:
        """As `LayerKV.ring_values`."""
        return self._parts["recent"].values.read(rows)

    def show_tokens(self, target: Tensor, source: Tensor, rotation: Rotation) -> None:
        """As `LayerKV.show_tokens`."""
        self._shown_tokens = target, source, rotation
        self._changed = []

    def show_changed(self, target: Tensor, rotation: Rotation, made: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """As `LayerKV.show_changed`; repeated at every read, because the next layer overwrites the shared buffer."""
        self._changed.append((target, rotation, made))

    def rewrite(self, rows: Tensor, timeless: Tensor, v: Tensor) -> None:
        """As `LayerKV.rewrite`."""
        self._parts["recent"].write(rows, timeless, v)

    def keep_tokens(self, target: Tensor, source: Tensor) -> None:
        """As `LayerKV.keep_tokens`."""
        self._parts["recent"].keys.rearrange(target, source)
        self._parts["recent"].values.rearrange(target, source)
