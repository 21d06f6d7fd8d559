"""Real code on a CUDA device that is not there: nothing is computed, everything is counted.

    with fake_cuda() as ledger, torch.no_grad():
        ...                       # tensors on torch.device("cuda", 0)
    ledger.parts, ledger.races, ledger.mixes, ledger.peak

Tensors are PyTorch's own fakes (shapes, no memory). Streams and events are ours, with clocks that find races. Values
read back to the host are random numbers from a fixed seed. It knows launches, bytes, copies and waits, and no time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from packforcing_core.kernels import fast

from .ledger import HOST, Ledger
from .streams import Runtime

DEVICE = torch.device("cuda", 0)

# Operations that only describe memory, whatever their schema says of views.
_NO_KERNEL = {
    "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::new_empty_strided",
    "aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::_reshape_alias", "aten::unfold",
    "aten::set_",
}  # fmt: skip
_COPIES = {"aten::_to_copy", "aten::copy_"}
# Their results' sizes depend on values.
_WAITING = {"aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2"}
_INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_unsafe_index"}
_REACHING = {"packforcing::recall"}
"""Kernels that read pinned memory of the host."""
_OVERWRITING = {"aten::copy_", "aten::fill_", "aten::zero_", "aten::normal_", "aten::uniform_"}


class Counting(TorchDispatchMode):
    """Hands every operation to the fakes and its cost to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._random = random.Random(0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        schema = function._schema
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if schema.name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"):
            return self._scalar(schema.name, given)
        masked = schema.name in _INDEXING and any(tensor.dtype == torch.bool for tensor in given[1:])
        if (schema.name in _WAITING or masked) and given[0].device.type == "cuda":
            self._ledger.host_waits(
                schema.name, self._ledger.stream(given[0].device)
            )  # The fakes refuse it next: the size of the result is not known.
        pinned = kwargs.pop("pin_memory", False)
        made = function(*args, **kwargs)
        if schema.name == "aten::convolution":
            made = _as_cudnn_lays_it_out(made, *args[:2])
        results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        for tensor in results:
            self._ledger.allocation(tensor).pinned |= bool(pinned)
        if not (function.is_view or schema.name in _NO_KERNEL or schema.name.startswith("prim::")):
            self._count(schema, args, kwargs, given, results)
        return made

    def _scalar(self, name: str, given: list[Tensor]) -> bool | int | float:
        for tensor in [tensor for tensor in given if tensor.device.type == "cuda"][:1]:
            self._ledger.host_waits(name.removeprefix("aten::"), self._ledger.stream(tensor.device))
        if name != "aten::_local_scalar_dense" or given[0].dtype == torch.bool:
            return True
        return self._random.random() if given[0].dtype.is_floating_point else 1

    def _count(self, schema, args: tuple, kwargs: dict, given: list[Tensor], results: list[Tensor]) -> None:
        devices = {tensor.device.type for tensor in (*given, *results)}
        if "cuda" not in devices:
            for tensor in given:
                self._ledger.use(tensor, HOST, schema.name, writes=False)
            for tensor in results:
                self._ledger.use(tensor, HOST, schema.name, writes=True)
            return
        if schema.name in _COPIES and devices == {"cpu", "cuda"}:
            into = schema.name == "aten::copy_"
            source, target = (args[1], args[0]) if into else (args[0], results[0])
            waits_not = kwargs.get("non_blocking", False) or (into and len(args) > 2 and args[2])
            self._copy(source, target, bool(waits_not), made=not into)
            return
        self._mixed(schema.name, given)
        written = _written(schema, args, kwargs)
        mutated = {id(tensor) for tensor in written}
        fresh = [] if schema.is_mutable else results
        # What does not read what it writes.
        blind = schema.name in _OVERWRITING or schema.overload_name == "out" or schema.name.startswith("packforcing::")
        near = [t for t in given if t.device.type == "cuda" or schema.name in _REACHING]
        reads = [t for t in near if not (blind and id(t) in mutated)]
        if schema.name in _REACHING:
            self._ledger.now.to_device += sum(tensor.nbytes for tensor in written)
        self._ledger.launch(schema.name, reads, [*written, *fresh])

    def _copy(self, source: Tensor, target: Tensor, asynchronous: bool, made: bool) -> None:
        """Between host and device. PyTorch's own `.to("cpu", non_blocking=True)` makes pinned memory."""
        ledger = self._ledger
        host = target if target.device.type == "cpu" else source
        if made and host is target and asynchronous:
            ledger.allocation(host).pinned = True
        if host is target:
            ledger.now.to_host += source.nbytes
        else:
            ledger.now.to_device += source.nbytes
        ledger.launch("copy to host" if host is target else "copy to device", [source], [target])
        if not asynchronous or not ledger.allocation(host).pinned:
            near = source if host is target else target
            ledger.host_waits("copy to host" if host is target else "copy to device", ledger.stream(near.device))

    def _mixed(self, name: str, given: list[Tensor]) -> None:
        """Tensors of the host in a kernel of the device: an index is copied, a number passed, anything else wrong."""
        strangers = [tensor for tensor in given if tensor.device.type == "cpu" and tensor.dim() > 0]
        if not strangers or (name in _REACHING and all(self._ledger.allocation(t).pinned for t in strangers)):
            return
        if name in _INDEXING:
            for tensor in strangers:
                self._ledger.now.to_device += tensor.nbytes
                self._ledger.host_waits("index list")
            return
        self._ledger.mixes[f"{name} {[(str(t.device), tuple(t.shape)) for t in given]}"] += 1


def _as_cudnn_lays_it_out(made: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The fakes choose a backend of a machine without a GPU; cuDNN keeps channels last where input or weight has it."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(made.ndim)
    if layout is None or not any(t.is_contiguous(memory_format=layout) for t in (x, weight)):
        return made
    return torch.empty(made.shape, dtype=made.dtype, device=made.device, memory_format=layout)


def _written(schema, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operation writes to."""
    found = []
    for position, argument in enumerate(schema.arguments):
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    return found


@contextmanager
def fake_cuda(kernels: bool = True, memory: int = 80 * 10**9) -> Iterator[Ledger]:
    """A CUDA device with so many bytes for the code in this block, with or without the project's Triton kernels."""
    ledger = Ledger()
    runtime = Runtime(ledger, memory)
    numbers = random.Random(0)

    def tolist(tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            ledger.host_waits("tolist", ledger.stream(tensor.device))
        whole = not tensor.dtype.is_floating_point
        return _nested(tuple(tensor.shape), (lambda: numbers.randrange(100)) if whole else numbers.random)

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        made = torch.empty_like(q)
        if q.device.type == "cuda":
            ledger.launch("attention", [q, k, v], [made])
        return made

    def pin(tensor: Tensor, *_: Any) -> Tensor:
        copy = torch.empty_like(tensor)
        ledger.allocation(copy).pinned = True
        return copy

    places: list[tuple[Any, str, Callable]] = [
        *runtime.replacements(),
        (Tensor, "record_stream", lambda tensor, stream: ledger.allocation(tensor).recorded.add(stream.name)),
        (Tensor, "pin_memory", pin),
        (Tensor, "is_pinned", lambda tensor, *_: ledger.allocation(tensor).pinned),
        (Tensor, "data_ptr", lambda tensor: runtime.address(tensor)),
        (FakeTensor, "tolist", tolist),
        (torch.nn.functional, "scaled_dot_product_attention", attention),
        (fast, "usable", lambda device: kernels and device.type == "cuda"),
        (fast, "reaches", lambda bank, device: kernels and device.type == "cuda" and bank.is_pinned()),
    ]
    with ExitStack() as stack:
        for place, name, replacement in places:
            stack.enter_context(patch.object(place, name, replacement))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Counting(ledger))
        yield ledger


def _nested(shape: tuple[int, ...], number: Callable[[], float]) -> Any:
    return [_nested(shape[1:], number) for _ in range(shape[0])] if shape else number()
