"""Choosing on the device is choosing on the host: the same blocks in the same slots, bit for bit. Run on the CPU, where
the operations' plain compression serve.
"""

from __future__ import annotations

import random

import pytest
import torch

from packforcing_core.cache import mid, queued_choice
from packforcing_core.cache.config import PackForcing
from packforcing_core.cache.select import choose
from packforcing_core.kernels import plain
from tests.core.cache.test_bank import run
from tests.small import render_blocks, small_cache

STORAGES = ["ram", "vram", "vram_int8", "vram_int4"]


def slots_of(choice: tuple[int, ...], held: list[int]) -> list[int]:
    """What the host does: who is held stays, the others take the free slots in order of time."""
    missing = iter([block for block in choice if block not in held])
    return [block if block in choice else next(missing) for block in held]


def test_the_devices_choice_is_the_hosts_with_ties_and_slots():
    draw = random.Random(0)
    for trial in range(300):
        count = draw.randint(1, 12)
        top = draw.randint(1, count)
        blocks = draw.sample(range(50), count)
        scores = [draw.choice([-1.0, 0.0, 0.5, draw.random()]) for _ in blocks]
        held = draw.sample([*blocks, *range(60, 60 + top)], top)
        held = [block if block < 60 else -1 for block in held]
        slots = plain.chosen_slots(torch.tensor(scores), torch.tensor(blocks), torch.tensor(held)).tolist()
        chosen = choose(scores, blocks, top)
        assert slots[0] == slots_of(chosen, held), trial
        assert [blocks[source] for source in slots[1]] == slots[0]
        assert [chosen[place] for place in slots[2]] == slots[0]


@pytest.mark.parametrize("selector", ["mean", "mean+newest", "cosine+newest", "future"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_render_that_chooses_on_the_device_is_that_of_the_host(storage, selector, monkeypatch):
    policy = PackForcing(3, 3, 2, 4, bank_storage=storage, selector=selector)
    host = render_blocks(policy, 9)
    monkeypatch.setattr(mid, "queues", lambda banks, device: True)
    device = render_blocks(policy, 9)
    assert [block.selection for block in device] == [block.selection for block in host]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(device, host, strict=True))
    print(f"{storage}, {selector}: largest difference 0, choices {host[-1].selection}")
    assert [block.seen for block in device] == [block.seen for block in host]
    assert len({block.seen for block in host[3:]}) > 2


@pytest.mark.parametrize("batch", [1, 2])
def test_slots_fetches_and_the_number_of_waits(batch, monkeypatch):
    reads = []
    monkeypatch.setattr(
        queued_choice.Recall, "read", lambda self, read=queued_choice.Recall.read: reads.append(1) or read(self)
    )
    caches, chosen = [], []
    for queued in (False, True):
        monkeypatch.setattr(mid, "queues", lambda banks, device, queued=queued: queued)
        cache = small_cache(PackForcing(3, 3, 3, 5, mid_span=1.5), 3, batch=batch)
        chosen.append(run(cache, 14))
        caches.append(cache)
    host, device = caches
    assert chosen[0] == chosen[1]
    assert len(reads) == sum(bool(selection[0]) for selection in chosen[1])  # One a block, whatever the layers.
    assert host.mid._shown == device.mid._shown
    for a, b in zip(host.layers, device.layers, strict=True):
        assert torch.equal(a.k, b.k)
        assert torch.equal(a.v, b.v)


def test_recorded_choices_are_repeated_where_the_device_would_choose(monkeypatch):
    monkeypatch.setattr(mid, "queues", lambda banks, device: True)
    policy = PackForcing(3, 3, 2, 4)
    first = render_blocks(policy, 9)
    again = render_blocks(policy, 9, known=first[:6])
    assert [block.selection for block in first] == [block.selection for block in again]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))
