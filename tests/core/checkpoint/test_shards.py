from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from packforcing_core.checkpoint.files import open_tensors
from packforcing_core.checkpoint.load import inspect, read_checkpoint
from packforcing_core.errors import PackForcingError
from tests.checkpoints import in_diffusers_names, wan_state_dict

STATE = wan_state_dict()
NAME = "diffusion_pytorch_model"
INDEX = f"{NAME}.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    """The folder of a Wan in three shards with their index."""
    return write_shards(tmp_path / "self-forcing", STATE)


def write_shards(folder, state):
    folder.mkdir(parents=True)
    names, index = list(state), {}
    for number in range(3):
        file = f"{NAME}-{number + 1:05}-of-00003.safetensors"
        part = {name: state[name] for name in names[number::3]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.mark.parametrize(
    "given", ["", INDEX, f"{NAME}-00001-of-00003.safetensors", f"{NAME}-00003-of-00003.safetensors"]
)
def test_folder_index_and_shard_stand_for_the_whole_checkpoint(shards, given):
    read = read_checkpoint(shards / given)
    assert read.state_dict.keys() == STATE.keys()
    assert all(torch.equal(read.state_dict[name], STATE[name]) for name in STATE)
    assert read.metadata == {"format": "pt"}
    report = inspect(shards / given)
    assert report.usable
    assert report.file_bytes == sum(file.stat().st_size for file in shards.glob("*.safetensors"))
    assert report.parameters == sum(tensor.numel() for tensor in STATE.values())


@pytest.mark.parametrize("given", ["", "transformer", f"transformer/{INDEX}"])
def test_a_sharded_pipeline_of_diffusers_stands_for_its_transformer(tmp_path, given):
    pipeline = tmp_path / "Self-Forcing-diffusers"
    write_shards(pipeline / "transformer", in_diffusers_names(STATE))
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    (pipeline / "transformer" / "config.json").write_text(json.dumps({"num_layers": 2}))
    (pipeline / "vae").mkdir()
    save_file({"decoder.conv_in.weight": torch.ones(1)}, pipeline / "vae" / f"{NAME}.safetensors")
    read = read_checkpoint(pipeline / given)
    assert read.state_dict.keys() == STATE.keys()
    assert all(torch.equal(read.state_dict[name], STATE[name]) for name in STATE)
    report = inspect(pipeline / given)
    assert (report.usable, report.family.name, report.warnings) == (True, "self-forcing", ())
    assert report.how[0].startswith("name: 'self-forcing' in ")


def test_shards_are_read_without_their_index(shards):
    (shards / INDEX).unlink()
    assert inspect(shards / f"{NAME}-00002-of-00003.safetensors").usable


def test_a_folder_of_one_safetensors_file_is_that_file(tmp_path):
    save_file(STATE, tmp_path / "self_forcing.safetensors")
    assert inspect(tmp_path).usable


@pytest.mark.parametrize("given", ["", INDEX, f"{NAME}-00001-of-00003.safetensors"])
def test_a_missing_shard_is_named(shards, given):
    (shards / f"{NAME}-00002-of-00003.safetensors").unlink()
    with pytest.raises(PackForcingError, match=r"3 shards, but .*-00002-of-00003\.safetensors is missing"):
        inspect(shards / given)


def test_a_damaged_shard_is_named(shards):
    with open(shards / f"{NAME}-00002-of-00003.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(PackForcingError, match=r"-00002-of-00003\.safetensors is truncated"):
        inspect(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    shard = shards / f"{NAME}-00001-of-00003.safetensors"
    save_file({name: tensor.clone() for name, tensor in open_tensors(shards).load(STATE).items()}, shard)
    with pytest.raises(PackForcingError, match="not shards of one checkpoint"):
        inspect(shards)


def test_a_folder_of_several_checkpoints_asks_for_the_file(tmp_path):
    for name in "ab":
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(PackForcingError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\)"):
        inspect(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "C:secret", "a/b", "..", "", 3, None, ["a"]])
def test_an_index_opens_nothing_beside_its_folder(tmp_path, name):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(STATE, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(PackForcingError, match=r"was refused: it names|not an index of shards"):
        inspect(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.recursive(
        st.none() | st.integers() | st.text(max_size=8) | st.just("x.safetensors"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("weight_map") | st.text(max_size=4), inner),
        max_leaves=8,
    ).map(json.dumps)
    | st.text(max_size=40)
)
def test_any_index_is_read_or_refused(tmp_path, content):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text(content, encoding="utf-8")
    try:
        file = open_tensors(tmp_path / INDEX)
    except PackForcingError:
        return
    assert set(file.tensors) == {"x"}
