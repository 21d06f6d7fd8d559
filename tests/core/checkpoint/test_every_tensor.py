"""Every tensor of a file is used or named: in every layout, as it is and with strangers put in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.checkpoint.files import open_tensors
from packforcing_core.checkpoint.load import inspect, read_checkpoint
from packforcing_core.errors import PackForcingError
from tests.checkpoints import (
    LAYOUTS,
    SMALL,
    in_diffusers_names,
    wan_state_dict,
    write_family,
    write_scaled_fp8_wan,
    write_training_save,
)
from tests.core.checkpoint.test_scales import quantised

STATE = wan_state_dict()


def sharded(folder: Path) -> Path:
    names = list(STATE)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: STATE[name] for name in part}, folder / f"self_forcing-{number:05}-of-00002.safetensors")
    return folder / "self_forcing-00001-of-00002.safetensors"


def saved(tensors: dict):
    def write(folder: Path) -> Path:
        save_file(tensors, folder / "self_forcing.safetensors")
        return folder / "self_forcing.safetensors"

    return write


FILES = {name: (lambda folder, name=name: write_family(folder, name)[0]) for name in LAYOUTS}
FILES |= {
    "a training save": lambda folder: write_training_save(folder / "model.pt", {"generator_ema": STATE}),
    "diffusers": saved(in_diffusers_names(STATE)),
    "shards": sharded,
    "ComfyUI prefix": saved({f"model.diffusion_model.{name}": tensor for name, tensor in STATE.items()}),
    "fp8 with a scale a weight": lambda folder: write_scaled_fp8_wan(folder / "self_forcing.safetensors", SMALL),
    "fp8 with a scale a row": saved(quantised()),
    "int8 with a scale a row": saved(quantised(torch.int8)),
    "fp8 alone": saved({k: t.to(torch.float8_e4m3fn) if t.dim() == 2 else t for k, t in STATE.items()}),
}


def elements(infos) -> int:
    return sum(math.prod(info.shape) for info in infos)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_every_layout_is_used_to_its_last_tensor(tmp_path, name):
    path = FILES[name](tmp_path)
    file, read = open_tensors(path), read_checkpoint(path)
    used = elements([*read.state_dict.values(), *(read.compressor or {}).values()])
    marks = elements(
        info for key, info in file.tensors.items() if "scale" in key and "table" not in key
    )  # Applied, or the mark itself.
    left_out = elements(info for key, info in file.tensors.items() if "prope_o" in key)
    print(f"{used:,} of {elements(file.tensors.values()):,} numbers are used, {marks} are scales, {left_out} named")
    assert used + marks + left_out == elements(file.tensors.values())
    assert bool(left_out) == any("prope_o" in warning for warning in read.warnings)


@pytest.mark.parametrize("place", ["in the part", "beside the part"])
@pytest.mark.parametrize("name", FILES)
def test_a_stranger_in_a_file_of_any_layout_is_named(tmp_path, name, place):
    path, stranger = FILES[name](tmp_path), torch.ones(3)
    content = torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)
    part = next((value for value in content.values() if isinstance(value, dict)), content)
    sign = next(key for key in part if key.endswith(("patch_embedding.weight", "patch_embedding.bias")))
    front = sign[: sign.index("patch_embedding")]
    beside = place == "beside the part"
    (content if beside else part)["critic.model.strange" if beside else f"{front}strange"] = stranger
    torch.save(content, path) if path.suffix == ".pt" else save_file(content, path)
    try:
        warnings = " ".join(read_checkpoint(path).warnings)
    except PackForcingError as refused:
        warnings = str(refused)
    print(warnings)
    assert ("critic" if beside else "strange") in warnings
    report = inspect(path)
    assert ("critic" if beside else "strange") in " ".join((*report.warnings, *report.problems))


def test_scales_of_activations_that_are_left_out_are_counted(tmp_path):
    state = quantised()
    inputs = {
        key.replace("weight_scale", "input_scale"): torch.ones(1) for key in state if key.endswith("weight_scale")
    }
    path = saved({**state, **inputs})(tmp_path)
    (said,) = (warning for warning in read_checkpoint(path).warnings if "activations" in warning)
    print(said)
    assert said.startswith(f"{len(inputs)} tensors are not used: scales of activations")
