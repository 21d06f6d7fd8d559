"""The checks of `python -m tests.gpu`, as tests: on a GPU each for itself, on a CPU that they run at all."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import checks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(checks.CHECKS))
def test_a_fast_path_of_this_gpu_gives_what_its_plain_twin_gives(name):
    print(checks.CHECKS[name](torch.device("cuda")))


def test_what_is_off_is_told():
    assert checks.off(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), 0.1) == "0.0e+00"
    with pytest.raises(AssertionError, match="more than"):
        checks.off(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]), 0.1)
