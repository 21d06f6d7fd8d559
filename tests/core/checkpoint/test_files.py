from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from packforcing_core.checkpoint import files
from packforcing_core.checkpoint.files import TensorInfo, open_tensors
from packforcing_core.errors import PackForcingError
from tests.checkpoints import truncate, write_malicious

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.half": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.zeros(2, 0),
    "d": torch.ones(2, 2).to(torch.float8_e4m3fn),
}
INFOS = {
    "a": TensorInfo((2, 3), "F32"),
    "b.half": TensorInfo((4,), "BF16"),
    "c": TensorInfo((2, 0), "F32"),
    "d": TensorInfo((2, 2), "F8_E4M3"),
}


def write(path, content=None):
    content = TENSORS if content is None else content
    if path.suffix == ".safetensors":
        save_file(content, path, metadata={"who": "tests"})
    else:
        torch.save(content, path)
    return path


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_names_shapes_and_dtypes_are_read_and_then_the_tensors(tmp_path, name):
    file = open_tensors(write(tmp_path / name))
    assert dict(file.tensors) == INFOS
    loaded = file.load(["b.half", "a"])
    assert list(loaded) == ["b.half", "a"]
    assert all(torch.equal(loaded[key], TENSORS[key]) and loaded[key].dtype == TENSORS[key].dtype for key in loaded)
    assert dict(file.metadata) == ({"who": "tests"} if name == "x.safetensors" else {})


def test_nested_torch_files_are_flattened_and_what_is_no_tensor_left_out(tmp_path):
    nested = {"generator": {"model.a": torch.ones(1)}, "step": 3, "notes": ["x"], "deep": {"er": {1: torch.ones(2)}}}
    assert set(open_tensors(write(tmp_path / "x.pt", nested)).tensors) == {"generator.model.a", "deep.er.1"}


def test_torch_files_of_the_old_format_are_read(tmp_path):
    tensors = {name: TENSORS[name] for name in ("a", "b.half")}  # older than fp8
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    file = open_tensors(tmp_path / "old.pth")
    assert dict(file.tensors) == {name: INFOS[name] for name in tensors}
    assert torch.equal(file.load(["a"])["a"], TENSORS["a"])


@pytest.mark.parametrize(("real", "claimed"), [("x.safetensors", "x.pt"), ("x.pt", "x.safetensors")])
def test_a_wrong_extension_does_not_matter(tmp_path, real, claimed):
    path = write(tmp_path / real).rename(tmp_path / claimed)
    assert dict(open_tensors(path).tensors) == INFOS


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, old_format):
    marker = tmp_path / "ran"
    path = write_malicious(tmp_path / "evil.pt", marker, old_format=old_format)
    with pytest.raises(PackForcingError, match=r"evil.pt was refused.*could run code \(.*mkdir.*nothing was run"):
        open_tensors(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file of this test must be a real threat"


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_says_so(tmp_path, name, share):
    path = write(tmp_path / name, {"a": torch.randn(400, 40), "b": torch.randn(9)})
    with pytest.raises(PackForcingError, match=r"x\.\w+ is (truncated|damaged|empty)"):
        open_tensors(truncate(path, share))


def test_a_truncated_torch_file_of_the_old_format_says_so(tmp_path):
    torch.save({"a": TENSORS["a"]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(PackForcingError, match=r"old.pth"):
        open_tensors(truncate(tmp_path / "old.pth", 0.6))


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {**GOOD, "data_offsets": [0, 80]}}, "damaged"),
        ({"a": {**GOOD, "shape": [3], "data_offsets": [0, 12]}}, "truncated or damaged: the file has .* bytes"),
        ({"a": {**GOOD, "shape": [1], "data_offsets": [0, 4]}}, "truncated or damaged: the file has .* bytes"),
        ({"a": {**GOOD, "shape": [1], "data_offsets": [4, 8]}}, "damaged"),
        ({"a": GOOD, "b": GOOD}, "damaged"),
        ({"a": {**GOOD, "shape": [-2]}}, "damaged"),
        ({"a": {**GOOD, "shape": [2**70]}}, "damaged"),
        ({"a": {**GOOD, "shape": [True, 2]}}, "damaged"),
        ({"a": {**GOOD, "shape": "2"}}, "damaged"),
        ({"a": {**GOOD, "data_offsets": [8, 0]}}, "damaged"),
        ({"a": {**GOOD, "data_offsets": [0, 8, 8]}}, "damaged"),
        ({"a": {**GOOD, "dtype": "F33"}}, "damaged"),
        ({"a": {**GOOD, "dtype": ["F32"]}}, "damaged"),
        ({"a": {"dtype": "F32"}}, "damaged"),
        ({"a": [1]}, "damaged"),
        ({"a": GOOD, "__metadata__": {"x": 1}}, "damaged"),
        ({"a": GOOD, "__metadata__": 3}, "damaged"),
        ([GOOD], "damaged"),
        (b"{not json", "damaged"),
        (b"\xff\xfe{}", "damaged"),
        (b"[" * 100_000, "damaged"),
    ],
)
def test_a_lying_header_is_refused_with_the_reason(tmp_path, header, message):
    with pytest.raises(PackForcingError, match=message):
        open_tensors(raw_safetensors(tmp_path / "x.safetensors", header, b"\0" * 8))


def test_a_header_longer_than_the_file_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((90_000_000).to_bytes(8, "little") + b"{}")
    with pytest.raises(PackForcingError, match="truncated, or not a safetensors file: the file has 10 bytes"):
        open_tensors(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(PackForcingError, match="not a safetensors file"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GGUF\x03\0\0\0", "GGUF.*GGUF loader"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"hello", "not a safetensors file"),
        (b'{"a": 1}', "a JSON file, not a checkpoint"),
    ],
)
def test_other_things_are_called_by_their_names(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PackForcingError, match=message):
        open_tensors(path)


def test_a_path_that_the_system_refuses_is_an_error_of_ours(tmp_path):
    with pytest.raises(PackForcingError, match="cannot be opened"):
        open_tensors(tmp_path / ("x" * 5000))


def test_tables_that_hold_themselves_or_unfold_without_end_are_refused(tmp_path, monkeypatch):
    cycle = {}
    cycle["again"] = cycle
    with pytest.raises(
        PackForcingError, match=r"refused: its tables are nested more than 16 deep, or contain themselves"
    ):
        open_tensors(write(tmp_path / "cycle.pt", cycle))
    monkeypatch.setattr(files, "MAX_ENTRIES", 10_000)
    unfolding = torch.ones(1)
    for _ in range(12):
        unfolding = dict.fromkeys("abcd", unfolding)
    with pytest.raises(PackForcingError, match="refused: it has more than 10,000 entries"):
        open_tensors(write(tmp_path / "unfolding.pt", unfolding))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2, device="meta")}, "no data for 'a'"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a sparse tensor"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"has 'a\.b' twice"),
        ({(1, 2): torch.ones(1)}, "a name of type tuple"),
    ],
)
def test_what_is_no_plain_named_tensor_is_refused(tmp_path, content, message):
    with pytest.raises(PackForcingError, match=message):
        open_tensors(write(tmp_path / "x.pt", content))


def test_a_missing_file_and_a_folder_are_no_files(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(PackForcingError, match="is not a file"):
            open_tensors(path)


IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)


@IN_ONE_FOLDER
@given(data=st.data())
def test_any_damage_to_a_safetensors_file_is_refused_or_harmless(tmp_path, data):
    """Bytes of the header flipped: the reader refuses, or reads exactly what the safetensors library does."""
    path = write(tmp_path / "good.safetensors")
    content = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    try:
        file = open_tensors(damaged)
        loaded = file.load(file.tensors)
    except PackForcingError:
        return
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        name: info.shape for name, info in file.tensors.items()
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@IN_ONE_FOLDER
@given(data=st.data(), old_format=st.booleans())
def test_any_damage_to_a_torch_file_is_refused_or_harmless(tmp_path, data, old_format):
    path = tmp_path / "x.pt"
    torch.save({"a": TENSORS["a"]}, path, _use_new_zipfile_serialization=not old_format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))])
    try:
        file = open_tensors(path)
    except PackForcingError:
        return
    assert all(tuple(tensor.shape) == file.tensors[name].shape for name, tensor in file.load(file.tensors).items())


@IN_ONE_FOLDER
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["F32", "U8"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
    data=st.binary(max_size=16),
)
def test_any_json_for_a_header_is_refused_or_read(tmp_path, header, data):
    try:
        file = open_tensors(raw_safetensors(tmp_path / "x.safetensors", header, data))
    except PackForcingError:
        return
    assert all(isinstance(value, str) for value in file.metadata.values())
    assert all(isinstance(info, TensorInfo) for info in file.tensors.values())
    assert {name: tuple(tensor.shape) for name, tensor in file.load(file.tensors).items()} == {
        name: info.shape for name, info in file.tensors.items()
    }
