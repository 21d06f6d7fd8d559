"""What a block asks of a GPU under every policy, in blocks of 3 and 4, and with the 14B: counted, printed, bounded.

Marked `long`: a count of few layers takes some ten seconds, and the cost of the whole model takes two.
"""

from __future__ import annotations

import pytest

from packforcing_core.cache.config import POLICIES, PackForcing
from packforcing_core.model.config import WAN_SIZES
from tests.fakecuda.render import Case, counted_block, for_layers, planned_peak, table

pytestmark = [pytest.mark.budget, pytest.mark.long]

FEW, MORE = 2, 3
WAITING_PER_LAYER = {"tether_cache"}
"""Policies whose choice is made on the host, layer by layer."""
CASES = {
    **{f"{name}, blocks of {frames}": Case(kind(), frames) for name, kind in POLICIES.items() for frames in (3, 4)},
    "packforcing with the bank in VRAM": Case(PackForcing(bank_storage="vram")),
    "packforcing in 8 bits": Case(PackForcing(kv_int8="all", bank_storage="ram_int8")),
    "packforcing in 4 bits": Case(PackForcing(kv_int8="all_int4", bank_storage="ram_int4")),
    "packforcing on the 14B": Case(PackForcing(), model="14B"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_of_every_kind(name):
    case = CASES[name]
    layers = WAN_SIZES[case.model].num_layers
    few, more = (counted_block(case.with_layers(count)) for count in (FEW, MORE))
    cost = for_layers(few.total(), more.total(), (FEW, MORE), layers)
    peak = few.peak + (more.peak - few.peak) * (layers - FEW)
    planned = planned_peak(case.with_layers(layers))
    print(
        f"| {name} | {cost['launches']:,.0f} | {cost['moved_bytes'] / 1e9:.0f} | {cost['waits']:.0f} | "
        f"{peak / 1e9:.2f} | {peak / planned:.3f} |",
        *more.total().waits.items(),
        table(more),
        sep="\n",
    )
    assert not few.races
    assert not more.races
    assert not more.mixes
    by_layer = case.policy.name in WAITING_PER_LAYER or " bits" in name
    assert cost["waits"] <= (layers + 10 if by_layer else 10)
    assert abs(peak / planned - 1) <= 0.02
