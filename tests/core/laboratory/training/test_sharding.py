"""Two processes with sharded networks against one with whole ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.core.laboratory.training.small_stages import CASES, run

pytestmark = pytest.mark.integration

TOLERANCE = 1e-5
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """The folder in which two processes, started by torchrun, left three steps of every case."""
    folder = tmp_path_factory.mktemp("two_ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "tests.core.laboratory.training.small_stages", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shutil.copytree(folder / "teacher", folder / "as saved")
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> Callable[[str], tuple[list[float], dict[str, Tensor], list[float]]]:
    """By case: the losses and the weights of three steps in this process, and the losses of the two after them."""

    @cache
    def trained(case: str) -> tuple[list[float], dict[str, Tensor], list[float]]:
        folder = tmp_path_factory.mktemp("one_rank")
        losses, weights = run(CASES[case](), 3, folder)
        return losses, weights, run(CASES[case](), 2, folder)[0]

    return trained


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_and_the_weights_of_one(case, two_ranks, one_rank):
    theirs = json.loads((two_ranks / case / "losses.json").read_text())
    losses, weights, _ = one_rank(case)
    other = load_file(two_ranks / case / "weights.safetensors")
    assert set(other) == set(weights)
    difference = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
    moved = max((weights[name] - other[name]).abs().max().item() for name in weights)
    print(f"{case}: losses {losses}, at most {difference:.1e} apart; averaged weights {moved:.1e} apart")
    assert difference < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_what_two_processes_saved_goes_on_in_one(case, two_ranks, one_rank):
    *_, alone = one_rank(case)
    resumed, _ = run(CASES[case](), 2, two_ranks / case)
    difference = max(abs(a - b) for a, b in zip(alone, resumed, strict=True))
    print(f"{case}: next losses {resumed}, {difference:.1e} from those of one process")
    assert difference < TOLERANCE


def test_the_ranks_saved_a_part_each(two_ranks):
    parts = sorted((two_ranks / "as saved" / "state-00000003").glob("*.safetensors"))
    sizes = [sum(t.nbytes for t in load_file(part).values()) for part in parts]
    print(f"bytes a rank: {sizes}")
    assert len(sizes) == 2
    assert min(sizes) > 0.45 * sum(sizes)
    assert {path.suffix for path in parts[0].parent.iterdir()} == {".safetensors"}
