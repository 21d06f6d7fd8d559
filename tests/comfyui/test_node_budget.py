"""What a block asks of a GPU on the node's path: ComfyUI's own Wan and its operations, counted on a fake device."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from packforcing_core.cache.config import PackForcing
from tests.comfyui.install import PACK, comfyui_folder
from tests.fakecuda.render import Case, planned_peak

pytestmark = [pytest.mark.comfyui, pytest.mark.budget]

FEW, MORE, LAYERS = 2, 3, 30


@pytest.fixture(scope="module")
def counts() -> dict[int, dict]:
    script = PACK / "tests" / "comfyui" / "scripts" / "node_path.py"
    environment = {**os.environ, "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(FEW), str(MORE)]
    done = subprocess.run(command, cwd=comfyui_folder(), env=environment, stdout=subprocess.PIPE, check=True)
    found = {int(count): ledger for count, ledger in json.loads(done.stdout.splitlines()[-1]).items()}
    print(found)
    return found


def of_all_layers(counts: dict[int, dict], what: str) -> float:
    few, more = (counts[layers][what] for layers in (FEW, MORE))
    return few + (more - few) * (LAYERS - FEW) / (MORE - FEW)


def test_a_stock_model_waits_for_the_host_no_more_than_our_own(counts):
    for ledger in counts.values():
        assert sum(ledger["waits"].values()) <= 4, ledger["waits"]
        assert not ledger["races"]
        assert not ledger["mixes"]


def test_launches_and_bytes_of_a_stock_model(counts):
    launches, moved = of_all_layers(counts, "launches"), of_all_layers(counts, "moved_bytes")
    print(f"{launches:,.0f} launches and {moved / 1e9:.0f} GB a block without its decode")
    assert launches <= 8000
    assert moved <= 280e9


def test_the_peak_of_a_stock_model_is_what_is_planned(counts):
    planned = planned_peak(Case(PackForcing(), layers=LAYERS))
    peak = of_all_layers(counts, "peak")
    print(f"peak {peak / 1e9:.3f} GB, planned {planned / 1e9:.3f}: {peak / planned:.3f}")
    assert abs(peak / planned - 1) <= 0.02
