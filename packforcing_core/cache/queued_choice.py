"""Selection from the bank as work queued on the device, so that the host does not wait for each layer.

What a layer selects depends on its queries, and what it attends to depends on the selection. If the host selects, it
waits once per layer. Here each layer's selection stays on the device, which also fetches the blocks. The host reads the
selections of all layers at once, when the block is done. Selections, slots and bits are equal to those of
`MidMemory.show`, where the host selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import fast, plain
from ..queued import to_device
from ..rope import Rotation, rotate_into
from .bank import LayerBank
from .layer_kv import LayerKV

Shown = tuple[int, float | None] | None
"""The block in a mid slot and the position for which its keys are rotated; None if they are not rotated."""


@dataclass(eq=False)
class Queued:
    """A layer's selection that is made on the device: `slots` [3, k] as `plain.chosen_slots` gives it. `blocks` are in
    order of time, empty until `Recall.settle` has read them.
    """

    slots: Tensor
    positions: tuple[float, ...]
    blocks: tuple[int, ...] = ()


class Recall:
    """The mid slots of all layers while the device selects. `shown` is the host's list of their contents, by layer and
    slot. `resident` holds the keys [k, B, tokens, heads, head_dim] that stay on the device if the bank does not.
    """

    def __init__(self, banks: Sequence[LayerBank], resident: Sequence[Tensor], shown: list[list[Shown]]):
        self._banks, self._resident, self._shown = banks, resident, shown
        self._pending: dict[int, Queued] = {}
        self._asked: tuple[tuple[float, ...], Tensor, Tensor] | None = None

    def choose(
        self, layer: int, kv: LayerKV, scores: Tensor, blocks: Sequence[int], rotations: Rotation, positions: Sequence
    ) -> Queued:
        """Selects the best of `blocks`, one per entry of `positions`, and copies them to the mid slots. `scores` are
        those of the bank's slots; `rotations` [k, tokens, 1, pairs] rotate a compressed block to each position.
        """
        if layer in self._pending or (self._asked and self._asked[0] != tuple(positions)):
            self.settle()
        if self._asked is None:
            self._asked = self._question(layer, blocks, tuple(positions), scores.device)
        _, held, candidates = self._asked
        count, bank, own = len(positions), self._banks[layer], held[layer]
        slots = chosen_slots(scores, candidates, own)
        rows = kv.mid(0, count)
        values = kv.v[:, rows].unflatten(1, (count, -1)).transpose(0, 1)
        keys = self._resident[layer][:count] if len(self._resident[layer]) else torch.empty_like(values)
        bank.recall(slots, own, keys, values)
        turns = rotations.index_select(0, slots[2]).flatten(0, 1)
        rotate_into(kv.k[:, rows], keys.transpose(0, 1).flatten(1, 2), turns)
        self._pending[layer] = Queued(slots, tuple(positions))
        return self._pending[layer]

    def _question(
        self, layer: int, blocks: Sequence[int], positions: tuple[float, ...], device: torch.device
    ) -> tuple[tuple[float, ...], Tensor, Tensor]:
        """What all layers of a block share: what their slots hold (-1 for nothing), and which block is in which bank
        slot.
        """
        self._banks[layer].arrived()
        held = [[tag[0] if tag else -1 for tag in shown[: len(positions)]] for shown in self._shown]
        slots, candidates = (to_device(torch.tensor(x, dtype=torch.int32), device) for x in (held, list(blocks)))
        return positions, slots, candidates

    def holds(self, layer: int, choice: Queued) -> bool:
        """Whether the mid slots of `layer` hold this selection."""
        return self._pending.get(layer) is choice

    def settle(self) -> None:
        """Reads the selections of all layers in one copy, and notes what their slots hold."""
        if self._pending:
            for (layer, choice), held in zip(self._pending.items(), self.read(), strict=True):
                choice.blocks = tuple(sorted(held))
                place = dict(zip(choice.blocks, choice.positions, strict=True))
                shown = self._shown[layer]
                shown[:] = [(block, place[block]) for block in held] + [None] * (len(shown) - len(held))
            self._pending = {}
        self._asked = None

    def read(self) -> list[list[int]]:
        """The block in each mid slot, for each layer that selected; the host waits here."""
        return torch.stack([choice.slots[0] for choice in self._pending.values()]).tolist()


def chosen_slots(scores: Tensor, blocks: Tensor, held: Tensor) -> Tensor:
    """`plain.chosen_slots`, in one kernel if there is one."""
    return fast.chosen_slots(scores, blocks, held) if fast.serves(scores) else plain.chosen_slots(scores, blocks, held)


def queues(banks: Sequence[LayerBank], device: torch.device) -> bool:
    """Whether the device can select: a GPU that holds the bank, or whose kernels can read it in system RAM."""
    return device.type == "cuda" and all(bank.reached for bank in banks)
