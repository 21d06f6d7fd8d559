"""The mid of the PackForcing policy: a bank of compressed blocks, of which each layer selects a few per block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..geometry import compressed_grid
from ..queued import SideStream
from ..rope import GridRope, Rotation, rotate, rotate_into
from .bank import LayerBank
from .layer_kv import KVShape, LayerKV
from .moments import aligned, empty_moments, measured, pooled
from .packed import PackedKV
from .partitions import BankPlan, BlockWindow, Partitions
from .queries import Queries
from .queued_choice import Queued, Recall, Shown, queues
from .rule import KV
from .select import READS_QUERIES, SELECTORS, Question, choose

Choice = tuple[int, ...]
"""Bank blocks by their index in the video, in order of time."""


def region_centres(cells: int, size: int) -> list[float]:
    """Centres of `cells` equal regions of an axis of `size` points: (r + 0.5) size / cells - 0.5."""
    return [(cell + 0.5) * size / cells - 0.5 for cell in range(cells)]


def pair_centres(frames: int) -> list[float]:
    """Temporal centres of the pairs of latent frames that a compressed block's time cells cover. With an odd number of
    frames, the last cell covers one frame.
    """
    return [(first + min(first + 1, frames - 1)) / 2 for first in range(0, frames, 2)]


class CompressedRope:
    """Coordinates of a compressed block's tokens: the centres of their regions in the full grid."""

    def __init__(self, rope: GridRope, plan: BankPlan, frames_per_block: int):
        height, width = rope.grid
        frames, rows, columns = compressed_grid(frames_per_block, 2 * height, 2 * width)
        times = pair_centres(frames_per_block)
        places = region_centres(rows, height), region_centres(columns, width)
        self.tokens = frames * rows * columns
        self._offsets = [time * plan.mid_span / frames_per_block for time in times]
        self._rope = GridRope(rope.head_dim, (rows, columns), rope.device, rows=places[0], columns=places[1])
        self._spatial = self._rope.spatial(frames)
        self._times: dict[float, Rotation] = {}
        self._several: tuple[tuple[float, ...], Rotation] | None = None

    def spatial(self, keys: Tensor) -> Tensor:
        """Keys (or queries) of a compressed block [B, N_c, heads, head_dim] rotated by height and width."""
        return rotate(keys, self._spatial)

    def rotation(self, position: float) -> Rotation:
        """The whole rotation, in space and time, of a compressed block at `position`."""
        return self._rope.frames([position + offset for offset in self._offsets])

    def at(self, position: float, keys: Tensor) -> Tensor:
        """Spatially rotated keys (or queries) of a compressed block, rotated in time too, for a block at `position`."""
        return rotate(keys, self.time(position))

    def times(self, positions: Sequence[float]) -> Rotation:
        """The rotation in time of several compressed blocks in sequence. Passes with the same positions share it."""
        if self._several is None or self._several[0] != tuple(positions):
            self._several = tuple(positions), torch.cat([self.time(position) for position in positions])
        return self._several[1]

    def places(self, positions: Sequence[float]) -> Rotation:
        """`times` with a separate axis for the compressed blocks: [len(positions), tokens, 1, pairs]."""
        return self.times(positions).unflatten(0, (len(positions), -1))

    def time(self, position: float) -> Rotation:
        """The rotation in time of a compressed block at `position`."""
        if position not in self._times:  # There are few: the positions of the mid slots.
            self._times[position] = self._rope.frame_times([position + offset for offset in self._offsets])
        return self._times[position]


class MidMemory:
    """The bank, and the mid slots in the layers' buffers that hold the selected blocks.

    A slot is rewritten only when its block or position changes. A block that stays selected keeps its slot, since
    attention does not depend on the order of its keys. `blocks` is the ledger's list of the block in each bank slot.
    """

    def __init__(
        self,
        plan: BankPlan,
        partitions: Partitions,
        shape: KVShape,
        rope: GridRope,
        device: torch.device,
        banked: Sequence[int],
    ):
        self.plan = plan
        self.blocks = banked
        self.compressed_rope = CompressedRope(rope, plan, partitions.frames_per_block)
        if self.compressed_rope.tokens != shape.compressed.tokens:
            raise PackForcingError(
                f"KVShape.compressed_tokens is {shape.compressed.tokens}, but blocks of {partitions.frames_per_block} "
                f"latent frames of {rope.grid[0]} x {rope.grid[1]} tokens compress to {self.compressed_rope.tokens}. "
                "Take it from geometry.VideoGeometry.compressed_tokens."
            )
        copies = SideStream(device)
        self._banks = [
            LayerBank(shape.compressed, plan.bank_blocks, plan.bank_storage, device, copies)
            for _ in range(shape.layers)
        ]
        self._on_host = partitions.bank_on_host
        far = self._on_host and not partitions.packed  # Packed mid slots hold such keys themselves.
        resident = (plan.top_k_blocks, *shape.compressed.sizes) if far else (0,)
        self._resident = [torch.zeros(resident, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self._shown: list[list[Shown]] = [[None] * plan.top_k_blocks for _ in range(shape.layers)]
        self._rope = rope
        self._spatial: dict[int, Rotation] = {}
        # Mean of all committed queries, and the number of tokens in it.
        sizes = (shape.batch, shape.heads, shape.head_dim)
        self._running = [torch.zeros(sizes, dtype=torch.float32, device=device) for _ in range(shape.layers)]
        self._counted = [0] * shape.layers
        places = partitions.sink_frames + plan.bank_blocks if plan.alignment else 0
        self._moments = [empty_moments(places, *sizes, device) for _ in range(shape.layers)]
        self._sink = partitions.sink_frames
        self.recall = Recall(self._banks, self._resident, self._shown)
        self._queues = not partitions.packed and queues(self._banks, device)

    @property
    def compressed_bytes(self) -> int:
        """Bytes of the compressed blocks, in VRAM or in system RAM."""
        return sum(bank.compressed_bytes for bank in self._banks)

    @property
    def device_bytes(self) -> int:
        """Bytes on the device, including the compressed blocks if they are stored there."""
        means = sum(bank.mean_keys.nbytes for bank in self._banks)
        compressed = 0 if self._on_host else self.compressed_bytes
        beside = sum(t.nbytes for t in (*self._resident, *self._running, *self._moments))
        return means + beside + compressed

    def choose(
        self, layer: int, kv: KV, window: BlockWindow, queries: Queries, block: int, writes: bool = False
    ) -> Choice | Queued:
        """What `layer` selects for block `block`, from its queries; a `Queued` if the device selects."""
        bank, q, selector = self._banks[layer], queries.plain, self.plan.selector
        asked = rotate(q, self._spatial_of(q.shape[1] // kv.tokens_per_frame)) if selector in READS_QUERIES else q
        tokens = q.shape[1] + kv.query_sums.shape[1] * kv.tokens_per_frame
        own = queries.frame_sums.sum(dim=1)
        question = Question(
            mean_query=(own + kv.query_sums.sum(dim=1)) / tokens,
            queries=asked,
            blocks=self.blocks,
            mean_keys=bank.mean_keys[: len(self.blocks)],
            keys=bank.keys,
            seed=self.plan.selector_seed,
            block=block,
            layer=layer,
            running_query=self._with(layer, own, q.shape[1]),
            count=len(window.mid_positions),
            writes=writes,
        )
        scores, positions = SELECTORS[selector](question), window.mid_positions
        if self._queues and isinstance(scores, Tensor) and isinstance(kv, LayerKV):
            return self.recall.choose(layer, kv, scores, self.blocks, self.compressed_rope.places(positions), positions)
        return choose(scores, self.blocks, len(positions))

    def _with(self, layer: int, query_sum: Tensor, tokens: int) -> Tensor:
        """The running mean of queries after adding `query_sum` over `tokens` tokens."""
        counted = self._counted[layer]
        return torch.lerp(self._running[layer], query_sum / tokens, tokens / (counted + tokens))

    def store(self, layer: int, n: int, first: int, query_sum: Tensor, timeless: Tensor, v: Tensor) -> None:
        """Called when a block that begins at counted frame `first` is committed, with `n` tokens per frame: its summed
        queries [B, heads, head_dim], its keys (rotated by height and width only), and its values.
        """
        self._running[layer].copy_(self._with(layer, query_sum, timeless.shape[1]))
        self._counted[layer] += timeless.shape[1]
        if not self.plan.alignment:
            return
        for frame, rows in enumerate(zip(timeless.split(n, dim=1), v.split(n, dim=1), strict=True), first):
            if frame < self._sink:
                self._moments[layer][frame] = measured(*rows)

    def _spatial_of(self, frames: int) -> Rotation:
        """Rotation of `frames` frames by height and width: for one block, or for the blocks of a rolling window."""
        if frames not in self._spatial:
            self._spatial[frames] = self._rope.spatial(frames)
        return self._spatial[frames]

    def repeated(self, choice: Sequence[int], window: BlockWindow) -> Choice:
        """Repeats a selection of an earlier run. Raises PackForcingError if it does not fit this bank."""
        if len(choice) != len(window.mid_positions) or not set(choice) <= set(self.blocks):
            raise PackForcingError(
                f"The recorded selection {list(choice)} does not fit a bank of blocks {sorted(self.blocks)} of which "
                f"{len(window.mid_positions)} are selected. It was recorded with other settings of the policy."
            )
        return tuple(choice)

    def known(self, choice: Choice | Queued) -> Choice:
        """A selection on the host; if one has to be read from the device, those of all layers are read together."""
        if not isinstance(choice, Queued):
            return choice
        if not choice.blocks:
            self.recall.settle()
        return choice.blocks

    def show(self, layer: int, kv: KV, window: BlockWindow, choice: Choice | Queued) -> None:
        """Fills the mid slots of `kv` with the selected blocks, at the mid positions of `window`."""
        if isinstance(choice, Queued):
            if self.recall.holds(layer, choice):
                return
            choice = self.known(choice)
        self.show_at(layer, kv, window.mid_positions, choice)

    def show_at(self, layer: int, kv: KV, positions: Sequence[float], choice: Choice) -> None:
        """Fills the first mid slots of `kv` with the selected blocks, the i-th at the i-th position."""
        self.fetch(layer, kv, choice)
        self._banks[layer].wait()
        shown = self._shown[layer]
        if isinstance(kv, PackedKV):
            slot_of = {tag[0]: slot for slot, tag in enumerate(shown) if tag}
            if choice:
                kv.show_mid([slot_of[block] for block in choice], self.compressed_rope.times(positions))
            return
        wanted = dict(zip(choice, positions, strict=True))
        tags = [tag for tag in shown[: len(choice)] if tag]  # All are set, as they were fetched.
        stale = [slot for slot, (block, position) in enumerate(tags) if position != wanted[block]]
        if not stale:
            return
        # All slots from the first to the last changed one at once; unchanged ones between get the same values again.
        first, slots = stale[0], range(stale[0], stale[-1] + 1)
        blocks = [tags[slot][0] for slot in slots]
        rotation = self.compressed_rope.times([wanted[block] for block in blocks])
        rotate_into(kv.k[:, kv.mid(first, len(slots))], self._timeless(layer, slots, blocks), rotation)
        for slot, block in zip(slots, blocks, strict=True):
            shown[slot] = block, wanted[block]

    def fetch(self, layer: int, kv: KV, choice: Choice) -> None:
        """Starts copying the selected blocks into the first mid slots of `kv`, except those that are there already."""
        self.recall.settle()
        shown = self._shown[layer]
        shown[len(choice) :] = [None] * (len(shown) - len(choice))  # The current block's rows begin there.
        held = {tag[0] for tag in shown if tag}
        free = [slot for slot, tag in enumerate(shown[: len(choice)]) if tag is None or tag[0] not in choice]
        misses = [block for block in choice if block not in held]
        for slot, block in zip(free, misses, strict=True):
            bank, source = self._banks[layer], self.blocks.index(block)
            if isinstance(kv, PackedKV):
                kv.fetch_mid(slot, bank, source)
            else:
                keys = self._resident[layer][slot] if len(self._resident[layer]) else None
                bank.fetch(source, keys, kv.v[:, kv.mid(slot)])
            shown[slot] = block, None

    def _timeless(self, layer: int, slots: range, blocks: Sequence[int]) -> Tensor:
        """Keys of the blocks in these mid slots, in sequence, without rotation in time."""
        resident, bank = self._resident[layer], self._banks[layer]
        if len(resident):
            return resident[slots.start : slots.stop].transpose(0, 1).flatten(1, 2)
        return torch.cat([bank.keys(self.blocks.index(block)) for block in blocks], dim=1)

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Stores one layer of a compressed block in bank slot `slot`, aligned with the statistics of sink and bank.
        `keys` are spatially rotated.
        """
        if self.plan.alignment:
            keys, values = self._aligned(layer, slot, keys, values)
        self._banks[layer].write(slot, keys, values)

    def _aligned(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        moments, sink = self._moments[layer], self._sink
        others = [sink + other for other in range(len(self.blocks)) if other != slot]
        trusted = [*range(sink), *others]
        if trusted:
            tokens = [self._rope.grid[0] * self._rope.grid[1]] * sink + [keys.shape[1]] * len(others)
            keys, values = aligned(keys, values, pooled(moments[trusted], tokens), self.plan.alignment)
        moments[sink + slot] = measured(keys, values)
        return keys, values

    def forget(self) -> None:
        """Empties the mid slots, and restarts the mean of the queries; the bank is empty."""
        self.recall.settle()
        self._counted = [0] * len(self._counted)
        for shown in self._shown:
            shown[:] = [None] * len(shown)
