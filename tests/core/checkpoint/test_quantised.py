"""Checkpoints whose weights are quantised: read where they can be, kept for a host that knows them, or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.checkpoint.load import inspect, read_checkpoint
from packforcing_core.errors import PackForcingError
from tests.checkpoints import SMALL_STOCK, wan_state_dict, write_scaled_fp8_wan

STATE = wan_state_dict()


def write(path, state):
    """A bare safetensors file of a family that needs no warning."""
    save_file(state, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_lightx2vs_scales_for_each_row_are_named(tmp_path, dtype):
    state = dict(STATE)
    for name in [
        name for name in STATE if name.startswith("blocks.") and STATE[name].dim() == 2 and "norm" not in name
    ]:
        if name.endswith(".weight"):
            state[name] = STATE[name].to(dtype)
            state[f"{name}_scale"] = torch.ones(len(STATE[name]), 1)
    report = inspect(write(tmp_path / "self_forcing_lightx2v.safetensors", state))
    print(report.title)
    assert report.usable
    assert any("they are converted to bfloat16" in warning for warning in report.warnings)
    assert report.title.endswith("with one weight_scale per row, as LightX2V writes it")
    assert ("F8_E4M3" if dtype != torch.int8 else "I8") in report.title


def test_plain_fp8_is_cast_exactly_and_said(tmp_path):
    state = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.dim() == 2 else tensor.bfloat16()
        for name, tensor in STATE.items()
    }
    path = write(tmp_path / "self_forcing_fp8.safetensors", state)
    checkpoint = read_checkpoint(path)
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.bfloat16}
    assert all(torch.equal(checkpoint.state_dict[name].float(), state[name].float()) for name in state)
    assert any("fp8" in warning for warning in checkpoint.warnings)
    assert same_bits(read_checkpoint(path, keep_quantised=True).state_dict, state)


def same_bits(got, want) -> bool:
    return got.keys() == want.keys() and all(
        got[name].dtype == want[name].dtype and torch.equal(got[name].float(), want[name].float()) for name in want
    )


def scaled_fp8():
    name = "blocks.0.self_attn.q"
    return {
        **STATE,
        f"{name}.weight": STATE[f"{name}.weight"].to(torch.float8_e4m3fn),
        f"{name}.scale_weight": torch.tensor(0.5),
        "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }


def packed():
    name = "blocks.0.ffn.0"
    return {
        **STATE,
        f"{name}.weight": torch.zeros(256, 64, dtype=torch.uint8),
        f"{name}.weight_scale": torch.ones(256, 8),
        f"{name}.comfy_quant": torch.zeros(20, dtype=torch.uint8),
    }


def test_packed_weights_are_for_a_host_that_knows_their_scales(tmp_path):
    state = packed()
    path = write(tmp_path / "self_forcing.safetensors", {f"model.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(PackForcingError, match=r"quantised.*only ComfyUI.*bf16"):
        read_checkpoint(path)
    kept = read_checkpoint(path, keep_quantised=True)
    assert kept.quantised
    assert same_bits(kept.state_dict, state)
    report = inspect(path)
    assert (report.quantised, report.usable, report.usable_by_host) == (True, False, True)
    assert report.problems == ()
    assert "quantised" in report.advice
    assert "only ComfyUI" in report.advice
    assert not any("bfloat16" in warning for warning in report.warnings), "outside ComfyUI nothing computes it"


@pytest.mark.parametrize("quantise", [scaled_fp8, packed])
def test_a_damaged_quantised_file_is_no_ones(tmp_path, quantise):
    state = quantise()
    del state["blocks.1.modulation"]
    path = write(tmp_path / "self_forcing.safetensors", state)
    report = inspect(path)
    assert (report.quantised, report.usable, report.usable_by_host) == (quantise is packed, False, False)
    with pytest.raises(PackForcingError, match=r"missing: blocks\.1\.modulation"):
        read_checkpoint(path, keep_quantised=True)


def test_a_scaled_fp8_file_holds_the_weights_but_for_rounding(tmp_path):
    path = write_scaled_fp8_wan(tmp_path / "scaled.safetensors")
    assert inspect(path).usable_by_host
    state, plain = read_checkpoint(path, keep_quantised=True).state_dict, wan_state_dict(SMALL_STOCK)
    scales = {name: scale for name, scale in state.items() if name.endswith(".scale_weight")}
    assert len(scales) == 10 * SMALL_STOCK.num_layers
    for name, scale in scales.items():
        weight = f"{name.removesuffix('.scale_weight')}.weight"
        difference = (state[weight].float() * scale - plain[weight]).norm() / plain[weight].norm()
        assert 0 < difference < 0.04
    print(f"last relative difference {difference:.1e}")


def test_quantisation_that_only_the_metadata_tells_is_seen(tmp_path):
    path = tmp_path / "self_forcing.safetensors"
    save_file(STATE, path, metadata={"_quantization_metadata": json.dumps({"layers": {}})})
    with pytest.raises(PackForcingError, match="quantised"):
        read_checkpoint(path)


def test_the_table_of_quantised_layers_is_renamed_with_them(tmp_path):
    path = tmp_path / "self_forcing.safetensors"
    layers = {"model.diffusion_model.blocks.0.ffn.0": {"format": "float8_e4m3fn"}}
    named = {f"model.diffusion_model.{name}": tensor for name, tensor in STATE.items()}
    save_file(named, path, metadata={"_quantization_metadata": json.dumps({"layers": layers, "version": 1}), "a": "b"})
    metadata = read_checkpoint(path, keep_quantised=True).metadata
    assert metadata["a"] == "b"
    assert json.loads(metadata["_quantization_metadata"]) == {
        "layers": {"blocks.0.ffn.0": {"format": "float8_e4m3fn"}},
        "version": 1,
    }


@pytest.mark.parametrize("table", ["", "[]", "{}", '{"layers": 3}', "[" * 100_000])
def test_a_table_of_quantised_layers_that_is_none_is_refused(tmp_path, table):
    path = tmp_path / "self_forcing.safetensors"
    save_file(STATE, path, metadata={"_quantization_metadata": table})
    for read in (inspect, lambda path: read_checkpoint(path, keep_quantised=True)):
        with pytest.raises(PackForcingError, match="_quantization_metadata is not a table of layers"):
            read(path)
