"""Storage for the compressed blocks of one layer: in VRAM or in system RAM, at full precision, int8 or int4."""

from __future__ import annotations

import math
import weakref
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import fast
from ..queued import Moment, SideStream
from .few_bits import Bits, TokenRows, quantise, restored, row_bytes, stored_as


def bits_of(storage: str) -> Bits | None:
    """Bits per value in a bank with this `storage` setting; None for full precision."""
    return 8 if storage.endswith("int8") else 4 if storage.endswith("int4") else None


@dataclass(frozen=True)
class CompressedShape:
    """The keys (or the values) of one compressed block in one layer: [batch, tokens, heads, head_dim] of `dtype`."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.batch, self.tokens, self.heads, self.head_dim

    def stored_bytes(self, storage: str) -> int:
        """Bytes of one compressed block's keys and values, their scales included."""
        return 2 * math.prod(self.sizes[:3]) * row_bytes(self.head_dim, self.dtype, bits_of(storage))


class CompressedRows:
    """A fixed number of slots for the keys (or values) of compressed blocks, [B, tokens, heads, head_dim] each."""

    def __init__(self, shape: CompressedShape, slots: int, storage: str, device: torch.device):
        place = torch.device("cpu") if storage.startswith("ram") else device
        self._device, self._dtype = device, shape.dtype
        self._bits = bits_of(storage)

        def allocate(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            rows = torch.empty((slots, *sizes), dtype=dtype, device=place)
            if place != device:
                self._pin(rows)
            return rows

        made = (allocate(*stored) for stored in stored_as(shape.sizes, shape.dtype, self._bits))
        self._rows, self._scales, *_ = *made, None

    def _pin(self, rows: Tensor) -> None:
        """Pins ordinary memory for as long as this bank exists. If that fails, copies are only slower.

        PyTorch's own pinned memory is rounded up to powers of two, 1.9 times a bank of the usual size, and is never
        freed.
        """
        if self._device.type != "cuda" or not rows.nbytes:
            return
        cuda = torch.cuda.cudart()
        if int(cuda.cudaHostRegister(rows.data_ptr(), rows.nbytes, 0)) == 0:
            weakref.finalize(self, cuda.cudaHostUnregister, rows.data_ptr())
        else:
            _forget_last_error(self._device)

    @property
    def tensors(self) -> list[Tensor]:
        return [self._rows] if self._scales is None else [self._rows, self._scales]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(self, slot: int, rows: Tensor) -> None:
        if self._bits is None or self._scales is None:
            self._rows[slot].copy_(rows, non_blocking=True)
            return
        codes, scales = quantise(rows, self._bits)
        self._rows[slot].copy_(codes, non_blocking=True)
        self._scales[slot].copy_(scales, non_blocking=True)

    def read(self, slot: int) -> Tensor:
        """The rows of `slot` on the device, in the cache's dtype."""
        rows = self._rows[slot].to(self._device, non_blocking=True)
        if self._scales is None:
            return rows
        return restored(rows, self._scales[slot].to(self._device, non_blocking=True)).to(self._dtype)

    @property
    def reached(self) -> bool:
        """Whether a kernel on the device can read the rows directly."""
        if self._rows.device.type == self._device.type:
            return True
        return self._scales is None and fast.reaches(self._rows, self._device)

    def recall(self, slots: Tensor, held: Tensor, out: Tensor) -> None:
        """Copies the rows of the chosen slots to `out` [k, B, tokens, heads, head_dim] on the device.

        `slots` [3, k] comes from `plain.chosen_slots`. `held` [k] names the slots whose rows are in `out` already;
        those are not read again from system RAM.
        """
        if self._rows.device != out.device:
            fast.recall(self._rows, slots, held, out)
        elif self._scales is None:
            out.copy_(self._rows.index_select(0, slots[1]))
        else:
            out.copy_(restored(self._rows.index_select(0, slots[1]), self._scales.index_select(0, slots[1])))

    def copy_to(self, target: TokenRows, rows: slice, slot: int) -> None:
        """Copies `slot` to rows on the device. Quantised values are copied as they are, without a second rounding."""
        if self._scales is not None and target.bits == self._bits:
            target.take_codes(rows, self._rows[slot], self._scales[slot])
        else:
            target.write(rows, self.read(slot))


def _forget_last_error(device: torch.device) -> None:
    """Clears the error of a failed CUDA call: torch raises it at the next kernel launch, which is made here."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)


class LayerBank:
    """One layer's compressed blocks: keys without rotation in time, values, and `mean_keys` [slots, B, heads,
    head_dim] float32.
    """

    def __init__(self, shape: CompressedShape, slots: int, storage: str, device: torch.device, copies: SideStream):
        self._keys = CompressedRows(shape, slots, storage, device)
        self._values = CompressedRows(shape, slots, storage, device)
        self._copies = copies
        copies.lend(*self._keys.tensors, *self._values.tensors)
        self._arrival: Moment = ()
        self.mean_keys = torch.zeros(slots, shape.batch, shape.heads, shape.head_dim, device=device)

    @property
    def compressed_bytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def write(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """`keys` and `values` [B, tokens, heads, head_dim] of a compressed block. Does not wait for the copies."""
        self.mean_keys[slot] = keys.float().mean(dim=1)
        with self._copies.beside(keys, values):
            self._keys.write(slot, keys)
            self._values.write(slot, values)

    def fetch(self, slot: int, keys: Tensor | None, values: Tensor) -> None:
        """Starts copying a compressed block into `keys` (if given) and `values` on the device; call `wait` before
        reading them.
        """
        with self._copies.beside():
            values.copy_(self._values.read(slot))
            if keys is not None:
                keys.copy_(self._keys.read(slot))
        self._arrival = self._copies.mark()

    def fetch_into(self, slot: int, keys: TokenRows, values: TokenRows, rows: slice) -> None:
        """Starts copying a compressed block into `rows` of `keys` and `values` on the device; call `wait` before
        reading them.
        """
        with self._copies.beside():
            self._keys.copy_to(keys, rows, slot)
            self._values.copy_to(values, rows, slot)
        self._arrival = self._copies.mark()

    @property
    def reached(self) -> bool:
        """Whether a kernel on the device can read the compressed blocks directly."""
        return self._keys.reached and self._values.reached

    def arrived(self) -> None:
        """Work queued on the device after this call sees every compressed block written so far."""
        self._copies.wait(self._copies.mark())

    def recall(self, slots: Tensor, held: Tensor, keys: Tensor, values: Tensor) -> None:
        """`CompressedRows.recall` of keys and values."""
        self._values.recall(slots, held, values)
        self._keys.recall(slots, held, keys)

    def wait(self) -> None:
        """Work queued on the device after this call sees what was fetched."""
        self._copies.wait(self._arrival)
        self._arrival = ()

    def keys(self, slot: int) -> Tensor:
        """Keys of a compressed block on the device, [B, tokens, heads, head_dim]."""
        with self._copies.beside():
            keys = self._keys.read(slot)
        self._copies.wait(self._copies.mark())
        return keys
