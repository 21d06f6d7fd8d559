from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.checkpoint.load import inspect, read_checkpoint
from packforcing_core.errors import PackForcingError
from tests.checkpoints import SMALL, scaled_fp8_state_dict, wan_state_dict

STATE = wan_state_dict()
LAYERS = [
    name.removesuffix(".weight")
    for name, weight in STATE.items()
    if name.startswith("blocks.") and name.endswith(".weight") and weight.dim() == 2
]
LARGEST = {torch.float8_e4m3fn: 448, torch.float8_e5m2: 57344, torch.int8: 127}


def quantised(dtype=torch.float8_e4m3fn, scale_name="weight_scale", shape="rows"):
    """Every Linear of the blocks as codes with its scale: one a row ([out, 1] or [out]), or one number."""
    state = dict(STATE)
    for layer in LAYERS:
        weight = STATE[f"{layer}.weight"]
        scale = (weight.abs().amax(1, keepdim=True) if shape != "one" else weight.abs().max()) / LARGEST[dtype]
        codes = weight / scale
        state[f"{layer}.weight"] = (codes.round() if dtype == torch.int8 else codes).to(dtype)
        state[f"{layer}.{scale_name}"] = scale.flatten() if shape == "flat" else scale
    return state


def written(folder, state, name="self_forcing.safetensors"):
    save_file({f"model.{key}": tensor for key, tensor in state.items()}, folder / name)
    return folder / name


@pytest.mark.parametrize("shape", ["rows", "flat", "one"])
@pytest.mark.parametrize("dtype", LARGEST)
def test_scales_that_nothing_tells_a_host_of_are_applied(tmp_path, dtype, shape):
    path = written(tmp_path, quantised(dtype, shape=shape))
    for keep in (False, True):
        read = read_checkpoint(path, keep_quantised=keep)
        assert read.state_dict.keys() == STATE.keys()
        assert not read.quantised
        worst = max(
            ((read.state_dict[name].double() - STATE[name].double()).norm() / STATE[name].double().norm()).item()
            for name in STATE
        )
        print(f"worst relative difference {worst:.1e}")
        assert worst < (0.012 if dtype == torch.int8 else 0.05 if dtype == torch.float8_e4m3fn else 0.1)
        assert any("converted to bfloat16" in warning for warning in read.warnings)
    report = inspect(path)
    assert report.usable
    assert report.usable_by_host


def test_a_decoded_weight_is_the_code_times_its_scale_rounded_once(tmp_path):
    state = quantised(torch.int8)
    read = read_checkpoint(written(tmp_path, state))
    for layer in LAYERS:
        exact = state[f"{layer}.weight"].double() * state[f"{layer}.weight_scale"].double()
        assert torch.equal(read.state_dict[f"{layer}.weight"], exact.float().to(torch.bfloat16))


def test_scales_that_comfyui_knows_stay_for_it_and_are_applied_elsewhere(tmp_path):
    state = scaled_fp8_state_dict(SMALL)
    path = written(tmp_path, state)
    kept = read_checkpoint(path, keep_quantised=True)
    assert kept.quantised
    assert kept.state_dict.keys() == state.keys()
    read = read_checkpoint(path)
    assert read.state_dict.keys() == STATE.keys()
    for layer in LAYERS:
        exact = state[f"{layer}.weight"].double() * state[f"{layer}.scale_weight"].double()
        assert torch.equal(read.state_dict[f"{layer}.weight"], exact.float().to(torch.bfloat16))


FIRST = LAYERS[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{FIRST}.weight_scale": None}, r"q\.weight is F8_E4M3 without a scale"),
        ({f"{FIRST}.weight": None}, r"q\.weight_scale is a scale without an 8-bit weight"),
        ({f"{FIRST}.weight": torch.ones(128, 128)}, r"q\.weight_scale is a scale without an 8-bit weight"),
        ({f"{FIRST}.scale_weight": torch.ones(1)}, r"q\.weight has two scales"),
        ({f"{FIRST}.weight_scale": torch.ones(128, 4)}, r"is \[128, 4\] for a weight of \[128, 128\]"),
        ({f"{FIRST}.weight_scale": torch.ones(64)}, r"is \[64\] for a weight"),
        ({f"{FIRST}.weight_scale": torch.full((128, 1), torch.inf)}, "infinite or NaN"),
        ({f"{FIRST}.weight_zero_point": torch.ones(128, 1)}, r"unexpected: .*weight_zero_point"),
    ],
)
def test_scales_that_do_not_fit_are_refused_for_everyone(tmp_path, change, message):
    state = {name: tensor for name, tensor in {**quantised(), **change}.items() if tensor is not None}
    path = written(tmp_path, state)
    for keep in (False, True):
        with pytest.raises(PackForcingError, match=message):
            read_checkpoint(path, keep_quantised=keep)
    assert "infinite" in message or not inspect(path).usable_by_host


def test_scales_of_activations_are_not_needed(tmp_path):
    state = quantised() | {f"{layer}.input_scale": torch.ones(1) for layer in LAYERS}
    assert read_checkpoint(written(tmp_path, state)).state_dict.keys() == STATE.keys()
