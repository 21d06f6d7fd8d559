"""A compressor knows its base model by a few of its numbers: in any dtype, and apart from its relatives."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from packforcing_core.cli.main import main
from packforcing_core.compressor import base
from packforcing_core.compressor.weights import CompressorInfo, load_compressor, save_compressor
from packforcing_core.errors import PackForcingError
from tests.small import CONFIG, small_net
from tests.small_compressor import trained_high_res

WEIGHTS = dict(small_net().state_dict())


def tuned(by: float) -> dict[str, torch.Tensor]:
    """The weights as a further training would leave them, every number moved by about `by` of its size."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: t * (1 + by * torch.randn(t.shape, generator=generator)) if t.is_floating_point() else t
        for name, t in WEIGHTS.items()
    }


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "compressor.safetensors"
    told = {"base_family": "Self-Forcing", "steps": "120", "licence": "as its base model's"}
    save_compressor(path, trained_high_res(), CompressorInfo("small", 4, "test", base.sampled(WEIGHTS), told))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_in_another_dtype_are_the_same_base(path, dtype):
    cast = {name: tensor.to(dtype) for name, tensor in WEIGHTS.items()}
    apart = base.difference(base.sampled(WEIGHTS), base.sampled(cast))
    print(f"{dtype}: {100 * apart:.3f}% apart")
    assert apart <= base.SAME / 2
    loaded = load_compressor(path, CONFIG, 4, base=cast)
    assert loaded.info.base_samples == base.sampled(WEIGHTS)
    assert loaded.info.told["steps"] == "120"


def test_a_relative_is_refused_and_told_what_fits(path):
    print(f"{100 * base.difference(base.sampled(WEIGHTS), base.sampled(tuned(0.02))):.2f}% apart")
    with pytest.raises(PackForcingError, match=r"trained for small \(Self-Forcing\), width 128, blocks of 4"):
        load_compressor(path, CONFIG, 4, base=tuned(0.02))


def test_weights_that_went_through_fp8_are_let_pass_where_they_may_be_the_same(path):
    cast = {name: t.to(torch.float8_e4m3fn).to(torch.bfloat16) for name, t in WEIGHTS.items()}
    print(f"fp8: {100 * base.difference(base.sampled(WEIGHTS), base.sampled(cast)):.2f}% apart")
    load_compressor(path, CONFIG, 4, base=cast)
    other = {name: t.to(torch.float8_e4m3fn).to(torch.bfloat16) for name, t in tuned(0.5).items()}
    with pytest.raises(PackForcingError, match="other weights"):
        load_compressor(path, CONFIG, 4, base=other)
    assert base.sampled({name: t.to(torch.float8_e4m3fn) for name, t in WEIGHTS.items()}) == {}


def test_samples_of_other_sizes_or_damaged_ones_do_not_pass_for_the_same():
    one = base.sampled(WEIGHTS)
    assert base.difference(one, {name: numbers[1:] for name, numbers in one.items()}) == math.inf
    assert base.difference(one, {}) is None
    assert base.parse(json.dumps(one)) == one
    assert base.parse("[1, 2]") is None
    assert base.parse('{"a": 1}') is None


def test_a_file_that_knows_no_base_serves_every_model_of_its_width(tmp_path):
    path = tmp_path / "old.safetensors"
    save_compressor(path, trained_high_res(), CompressorInfo("small", 4, "test"))
    load_compressor(path, CONFIG, 4, base=tuned(0.5))
    with pytest.raises(PackForcingError, match="width"):
        load_compressor(path, dataclasses.replace(CONFIG, dim=256), 4, base=WEIGHTS)


def test_inspect_says_what_a_compressor_is_for(path, capsys):
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    print(shown)
    for said in (
        "small (Self-Forcing), width 128, blocks of 4",
        "120",
        "as its base model's",
        "checked by its weights",
    ):
        assert said in shown
