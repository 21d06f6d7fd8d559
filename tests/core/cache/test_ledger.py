"""The cache in numbers: what is counted block by block is what a ledger says of any block at once."""

from __future__ import annotations

import pytest

from packforcing_core.cache.config import POLICY_PRESETS, PackForcing
from packforcing_core.cache.ledger import Ledger
from packforcing_core.errors import PackForcingError


def counted(ledger: Ledger, selection=((),)) -> None:
    """One more block, and the compressed form of the one that is due."""
    ledger.count_block(ledger.next_block, selection)
    if ledger.due_block is not None:
        slot, _ = ledger.take_due()
        ledger.count_compressed(slot)


@pytest.mark.parametrize("frames", [1, 3, 4])
@pytest.mark.parametrize("preset", sorted(POLICY_PRESETS))
def test_a_ledger_of_any_block_is_one_that_counted_up_to_it(preset, frames):
    partitions = POLICY_PRESETS[preset].partitions(frames)
    ledger = Ledger(partitions)
    for block in range(60):
        at_once = Ledger.before(partitions, block)
        assert at_once.next_block == ledger.next_block == block
        assert at_once.window() == ledger.window()
        assert at_once.blocks_in_view() == ledger.blocks_in_view()
        assert sorted(at_once.banked) == sorted(ledger.banked)
        counted(ledger)
    assert bool(ledger.banked) == bool(partitions.bank)


def test_a_full_bank_gives_the_oldest_blocks_slot_to_the_next():
    ledger = Ledger(PackForcing(sink_frames=3, recent_frames=3, top_k_blocks=2, bank_blocks=3).partitions(3))
    for _ in range(7):
        counted(ledger)
    assert ledger.banked == [4, 5, 3]


def test_a_compressed_block_sees_what_its_block_selected_and_the_bank_still_has():
    ledger = Ledger(PackForcing(sink_frames=3, recent_frames=3, top_k_blocks=2, bank_blocks=2).partitions(3))
    for block in range(5):
        counted(ledger, (() if block < 4 else (1, 2),))
    assert ledger.banked == [3, 2]
    ledger.count_block(5, ((2, 3),))
    assert ledger.due_block == 4
    assert ledger.take_due() == (1, [(2,)])


def test_nothing_is_compressed_before_it_is_due_and_nothing_else_before_that():
    ledger = Ledger(PackForcing(sink_frames=3, recent_frames=3, top_k_blocks=2, bank_blocks=2).partitions(3))
    with pytest.raises(PackForcingError, match="No block has to be compressed now"):
        ledger.take_due()
    for block in range(3):
        ledger.count_block(block, ((),))
    with pytest.raises(PackForcingError, match="Block 1 has left the recent frames"):
        ledger.restart()
