"""The fake device finds what it is there to find: planted races, waits and mixes are reported, right code is not."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from packforcing_core.cache.bank import CompressedShape, LayerBank
from packforcing_core.queued import SideStream
from tests.fakecuda.device import DEVICE, fake_cuda

pytestmark = pytest.mark.budget


def on_device(*sizes: int) -> torch.Tensor:
    return torch.zeros(sizes, device=DEVICE)


def test_launches_and_bytes_are_those_of_the_operations():
    with fake_cuda() as ledger:
        a, b = on_device(100), on_device(100)
        ledger.forget_counts()
        c = a + b
        c.mul_(2)
        c.view(10, 10).t()  # A view moves nothing.
        torch.add(a, b, out=c)
        c.copy_(a)
    assert ledger.total().launches == 4
    assert dict(ledger.total().moved) == {"aten::add": 2 * 1200, "aten::mul_": 800, "aten::copy_": 800}


def test_an_expanded_axis_counts_once():
    with fake_cuda() as ledger:
        row = on_device(1, 100).expand(50, 100)
        ledger.forget_counts()
        row.clone()
    assert ledger.total().moved_bytes == 400 + 50 * 400


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: torch.zeros(5).to(DEVICE),
        lambda x: torch.zeros(5).to(DEVICE, non_blocking=True),  # Not pinned: it is copied at once.
        lambda x: torch.tensor([1, 2], device=DEVICE),
        lambda x: x[[1, 2]],
        lambda x: x[x > 0],
        lambda x: torch.cuda.current_stream().synchronize(),
    ],
    ids=["item", "tolist", "bool", "cpu", "to", "unpinned", "tensor", "index list", "mask", "synchronize"],
)
def test_a_planted_wait_is_reported(wait):
    with fake_cuda() as ledger:
        x = on_device(5)
        ledger.forget_counts()
        with suppress(DynamicOutputShapeException):
            wait(x)
    assert sum(ledger.total().waits.values()) == 1


def test_what_does_not_wait_is_not_reported():
    with fake_cuda() as ledger:
        x = on_device(5)
        torch.zeros(5).pin_memory().to(DEVICE, non_blocking=True)
        x.to("cpu", non_blocking=True)
        x[1:3], x.index_select(0, on_device(2).long())
        torch.full((5,), 3.0, device=DEVICE)
    assert not ledger.total().waits


def test_a_planted_mix_is_reported_and_a_number_is_none():
    with fake_cuda() as ledger:
        x = on_device(5)
        x * torch.tensor(2.0)
        assert not ledger.mixes
        with pytest.raises(Exception, match="device"):
            x + torch.zeros(5)
        x[torch.tensor([0, 1])]
    assert list(ledger.mixes) == []


@pytest.mark.parametrize("order", ["waits", "none"])
@pytest.mark.parametrize("hazard", ["read after write", "write after read", "write after write"])
def test_a_planted_race_is_reported(hazard, order):
    with fake_cuda() as ledger:
        x = on_device(5)
        side = torch.cuda.Stream(DEVICE)
        side.wait_stream(torch.cuda.current_stream())
        first, second = hazard.split(" after ")[::-1]
        uses = {"read": lambda: x + 1, "write": lambda: x.fill_(1)}
        with torch.cuda.stream(side):
            uses[first]()
        if order == "waits":
            torch.cuda.current_stream().wait_stream(side)
        uses[second]()
    assert bool(ledger.races) == (order == "none"), dict(ledger.races)


def test_other_rows_of_a_buffer_are_no_race():
    with fake_cuda() as ledger:
        x, side = on_device(10), torch.cuda.Stream(DEVICE)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x[:5].fill_(1)
        x[5:].fill_(2)
    assert not ledger.races


@pytest.mark.parametrize("recorded", [True, False])
def test_memory_that_is_freed_while_another_stream_uses_it_is_reported(recorded):
    with fake_cuda() as ledger:
        x, side = on_device(5), torch.cuda.Stream(DEVICE)
        side.wait_stream(torch.cuda.current_stream())
        if recorded:
            x.record_stream(side)
        with torch.cuda.stream(side):
            x.fill_(1)
        del x
    assert bool(ledger.races) != recorded


def test_the_host_must_not_write_what_a_copy_still_reads():
    for waits in (True, False):
        with fake_cuda() as ledger:
            x = torch.zeros(5).pin_memory()
            x.to(DEVICE, non_blocking=True)
            if waits:
                torch.cuda.current_stream().synchronize()
            x.fill_(1)
        assert bool(ledger.races) != waits


@pytest.mark.parametrize("waits", [True, False])
def test_a_bank_that_is_read_before_it_has_arrived_is_reported(waits):
    with fake_cuda() as ledger, torch.no_grad():
        shape = CompressedShape(1, 182, 12, 128, torch.bfloat16)
        bank = LayerBank(shape, 4, "ram", DEVICE, SideStream(DEVICE))
        keys, values, to_keys, to_values = (
            torch.zeros(shape.sizes, dtype=torch.bfloat16, device=DEVICE) for _ in range(4)
        )
        bank.write(0, keys, values)
        bank.fetch(0, to_keys, to_values)
        if waits:
            bank.wait()
        to_keys + to_values
    assert bool(ledger.races) != waits, dict(ledger.races)


def test_the_peak_is_of_what_lives_together():
    with fake_cuda() as ledger:
        a = on_device(1000)
        del a
        b = on_device(600)
        c = b + 1
        assert ledger.live == 2 * 2400
        del b, c
    assert (ledger.peak, ledger.live) == (4800, 0)
