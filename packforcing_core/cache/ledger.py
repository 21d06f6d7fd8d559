"""The state of a KV cache without its tensors: what is committed, due for compression, banked, selected and cut.

This decides what each block sees. `KVCache` and the training's `FunctionalCache` are ledgers that also hold tensors.
The drawing of the window and the attention parts of training use a ledger alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PackForcingError
from .partitions import BlockWindow, Partitions
from .select import SELECTS_AGAIN

Selection = tuple[Sequence[int], ...]
"""What each layer selected for one block: bank blocks by their index in the video, or, for policies that prune tokens,
token indices (thousands of them, hence an `array`). Empty if there was nothing to select.
"""


class Ledger:
    """Executes a `Partitions` plan, block by block.

    `committed_frames` counts latent frames since the last `restart` or `cut`. `due_block` has left the recent frames,
    and its compressed form is not in the bank yet. `banked` is the block in each used bank slot.
    """

    def __init__(self, partitions: Partitions):
        self.partitions = partitions
        self.committed_frames = 0
        self.due_block: int | None = None
        self.banked: list[int] = []
        self._selected_by: dict[int, Selection] = {}  # By the block that will be compressed later.
        self._kept: tuple[int, ...] = ()  # Blocks with which the count restarted.
        self._uncounted = 0  # Blocks of the video left out of the count after them.
        self._bank_opens_at = 0
        self._flushed = False

    @classmethod
    def before(cls, partitions: Partitions, block: int) -> Ledger:
        """The ledger at the start of `block`, in a video without cuts."""
        ledger = cls(partitions)
        ledger.committed_frames = block * partitions.frames_per_block
        if partitions.bank:
            ledger.banked = list(partitions.left_blocks(block)[-partitions.bank.bank_blocks :])
        return ledger

    @property
    def next_block(self) -> int:
        """The index in the video of the next block."""
        return self._video_block(self.committed_frames)

    @property
    def selects_again(self) -> bool:
        """Whether a block selects again when it is committed."""
        return self.partitions.bank is not None and self.partitions.bank.selector in SELECTS_AGAIN

    def blocks_in_view(self) -> tuple[int, ...]:
        """The blocks with at least one whole frame in view, in order, by their index in the video."""
        frames = self.partitions.frames_per_block
        return tuple(self._video_block(b * frames) for b in self.partitions.blocks_in_view(self.committed_frames))

    def window(self, blocks: int = 1) -> BlockWindow:
        """What the next block sees, or the next `blocks` blocks if they are denoised together."""
        return self.window_after(self.committed_frames, blocks)

    def window_after(self, committed: int, blocks: int = 1) -> BlockWindow:
        """The window of the next `blocks` blocks, once `committed` frames are in the past. Works for the present state
        and for the state after the next commit with its compressed block.
        """
        bank = self.partitions.bank
        if bank is None or committed < self._bank_opens_at:
            return self.partitions.window(committed, blocks=blocks)
        arriving = committed > self.committed_frames and self._leaving_block(committed) is not None
        banked = min(len(self.banked) + arriving, bank.bank_blocks)
        return self.partitions.window(committed, banked, blocks)

    def _leaving_block(self, committed: int) -> int | None:
        """The block that left the recent frames with the commit that reached `committed` frames; None if it is in the
        sink.
        """
        leaving = committed - self.partitions.recent_frames - self.partitions.frames_per_block
        return self._video_block(leaving) if leaving >= self.partitions.sink_frames else None

    def _video_block(self, frame: int) -> int:
        """The index in the video of the block with counted frame `frame`; restarts and cuts leave some uncounted."""
        block = frame // self.partitions.frames_per_block
        return self._kept[block] if block < len(self._kept) else block + self._uncounted

    def ends_only(self, window: BlockWindow) -> list[int] | None:
        """Which of the frames of `window.past` the next block sees if it is the first one behind a flush: the first of
        the sink and the newest. None for every other block, which sees them all, and for one that drops tokens, which
        sees those that it selects.
        """
        if not self._flushed or self.committed_frames != self._bank_opens_at or window.pruned_frames is not None:
            return None
        ends = {0} if self.partitions.sink_frames else set()
        ends.add(self.committed_frames - 1)
        return [index for index, placement in enumerate(window.past) if placement.frame in ends]

    def require_none_due(self) -> None:
        """PackForcingError if a block has to be compressed first."""
        if self.due_block is not None:
            raise PackForcingError(
                f"Block {self.due_block} has left the recent frames but its compressed form was not committed. "
                "Give the rollout a compressor, or choose a policy without a bank."
            )

    def count_block(self, block: int, selection: Selection) -> None:
        """Counts `block` as committed; `selection` is what it selected."""
        if self.partitions.bank and self.committed_frames >= self.partitions.sink_frames:
            self._selected_by.setdefault(block, selection)
        self.committed_frames += self.partitions.frames_per_block
        if self.partitions.bank:
            self.due_block = self._leaving_block(self.committed_frames)

    def take_due(self) -> tuple[int, list[tuple[int, ...]]]:
        """The bank slot for `due_block` (a free one, or that of the oldest block), and for each layer those of the
        blocks it had selected that are still in the bank. PackForcingError if no block is due.
        """
        bank = self.partitions.bank
        if bank is None or self.due_block is None:
            raise PackForcingError("No block has to be compressed now; commit blocks until `due_block` is set.")
        seen = [tuple(b for b in choice if b in self.banked) for choice in self._selected_by.pop(self.due_block)]
        free = len(self.banked) < bank.bank_blocks
        return len(self.banked) if free else self.banked.index(min(self.banked)), seen

    def count_compressed(self, slot: int) -> None:
        """Marks the compressed form of `due_block` in bank slot `slot` as complete."""
        assert self.due_block is not None
        self.banked[slot : slot + 1] = [self.due_block]
        self.due_block = None

    def cut(self) -> None:
        """A hard cut: drops the whole past. For the model, the next block is the first one of a video."""
        self.require_none_due()
        self._forget()
        self._flushed = False
        self._begin_with(())

    def restart(self, flush: bool = False) -> tuple[int, ...]:
        """Starts the past over. Returns `blocks_in_view()`, which the caller must commit again, all and in this order;
        with `flush` only those of the sink and the newest block.

        The bank is kept, but hidden until these blocks are committed, because its blocks lie between them. A flush
        empties the bank. Positions restart at zero, which closes the gap of a sink at its true position.
        """
        self.require_none_due()
        blocks = self.blocks_in_view()
        if flush:
            sink = -(-self.partitions.sink_frames // self.partitions.frames_per_block)
            blocks = tuple(dict.fromkeys((*blocks[:sink], *blocks[-1:])))
            self._forget()
        self._flushed = flush
        self._begin_with(blocks)
        return blocks

    def _forget(self) -> None:
        """Drops everything stored about the past except the frames in view."""
        self._selected_by.clear()
        self.banked.clear()

    def _begin_with(self, blocks: tuple[int, ...]) -> None:
        """Restarts the count of frames with these blocks, which will be committed again."""
        self._uncounted, self._kept = self.next_block - len(blocks), blocks
        self._bank_opens_at = len(blocks) * self.partitions.frames_per_block
        self.committed_frames = 0
