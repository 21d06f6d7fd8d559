"""What a block asks of a GPU, at most. Figures are of the whole model, found from two counts with few layers."""

from __future__ import annotations

import pytest

from packforcing_core.cache.config import PackForcing
from tests.fakecuda.ledger import Part
from tests.fakecuda.render import Case, counted_block, counted_decode, for_layers, moved_by, planned_peak, table

pytestmark = pytest.mark.budget

FEW, MORE, LAYERS = 2, 3, 30
TURNED = ("rope.py", "cache/cache.py", "cache/layer_kv.py", "cache/mid.py")
"""Where keys and queries are turned, and written with their values."""


@pytest.fixture(scope="module")
def blocks():
    """Two counts of the same block, at 832x480 in blocks of 4 with the policy packforcing 8/4/16."""
    return [counted_block(Case(PackForcing(), layers=layers)) for layers in (FEW, MORE)]


@pytest.fixture(scope="module")
def decode():
    return counted_decode()


def test_launches_and_host_waits_of_a_block_with_its_decode(blocks, decode):
    cost = for_layers(*(ledger.total() for ledger in blocks), (FEW, MORE), LAYERS)
    launches = cost["launches"] + decode.total().launches
    print(f"{launches:.0f} launches, {cost}", *(table(ledger) for ledger in (*blocks, decode)), sep="\n")
    assert launches <= 8000
    # What all layers chose, the check of the values, the latents and the compressed tokens.
    assert cost["waits"] <= 4


def test_turning_and_writing_keys_moves_few_bytes(blocks):
    few, more = (moved_by(ledger.total(), *TURNED) for ledger in blocks)
    moved = few + (more - few) * (LAYERS - FEW)
    print(f"{moved / 1e9:.1f} GB")
    assert moved <= 25e9


def test_nothing_but_latents_and_what_is_compressed_goes_to_the_host(blocks):
    """The bank in system RAM takes the new compressed block, 1.1 MB a layer; latents are 1.6 MB, tokens 0.6."""
    few, more = (ledger.total().to_host for ledger in blocks)
    assert few - FEW * (more - few) == 4 * 16 * 4 * 60 * 104 + 2 * 182 * 1536
    assert more - few == 2 * 182 * 1536 * 2


def test_the_peak_of_a_block_is_what_is_planned(blocks):
    few, more = (ledger.peak for ledger in blocks)
    peak = few + (more - few) * (LAYERS - FEW)
    planned = planned_peak(Case(PackForcing(), layers=LAYERS))
    print(f"peak {peak / 1e9:.3f} GB, planned {planned / 1e9:.3f}: {peak / planned:.3f}")
    assert abs(peak / planned - 1) <= 0.02


def test_no_stream_races_and_no_cpu_tensor_meets_a_cuda_one(blocks, decode):
    for ledger in (*blocks, decode):
        assert not ledger.races, dict(ledger.races)
        assert not ledger.mixes, dict(ledger.mixes)


def test_costs_grow_evenly_with_layers():
    parts = [Part(launches=n) for n in (7, 9)]
    assert for_layers(*parts, (2, 3), 30)["launches"] == 7 + 28 * 2
