"""Compressor files: what is in them, and which are refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import packforcing_core.compressor
from packforcing_core.cli.main import main
from packforcing_core.compressor.high_res import FUSIONS, Fusion
from packforcing_core.compressor.weights import CompressorInfo, described, load_compressor, save_compressor
from packforcing_core.errors import PackForcingError
from tests.small import CONFIG, small_net
from tests.small_compressor import random_latents, trained_high_res

INFO = CompressorInfo("Wan2.1-T2V-1.3B", 4, "packforcing sink_frames=8 recent_frames=4 top_k_blocks=16")
README = Path(packforcing_core.compressor.__file__).with_name("README.md")


@pytest.fixture
def path(tmp_path) -> Path:
    return written(tmp_path, "add")


def written(folder: Path, fusion: Fusion) -> Path:
    path = folder / "compressor.safetensors"
    save_compressor(path, trained_high_res(fusion=fusion), INFO)
    return path


def rewrite(path: Path, tensors: dict | None = None, metadata: dict | None = None, drop: str = "") -> None:
    """Saves the file again with other tensors or metadata, or without the tensor or the metadata called `drop`."""
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **(metadata or {})}
    content = {**load_file(path), **(tensors or {})}
    header.pop(drop, None)
    content.pop(drop, None)
    save_file(content, path, header)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_saved_is_what_is_loaded(tmp_path, fusion):
    path = written(tmp_path, fusion)
    loaded, latents = load_compressor(path, CONFIG, 4), random_latents(4, 8, 16)
    low = torch.randn(1, 128, 2, 1, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.high_res(latents, low), trained_high_res(fusion=fusion)(latents, low))
    assert loaded.high_res.fusion == fusion
    assert ("fusion", f"{fusion}: {FUSIONS[fusion]}") in described(path)
    assert loaded.info == INFO
    assert not any(parameter.requires_grad for parameter in loaded.high_res.parameters())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_file_is_as_the_readme_documents_it(tmp_path, fusion):
    with safe_open(written(tmp_path, fusion), framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    own = [f"compressor.fusion.{name}" for name in ("gate", "join.weight", "join.bias")] if fusion == "concat" else []
    layers = [f"compressor.high_res.{n}.{kind}" for n in range(5) for kind in ("weight", "bias")]
    assert sorted(keys) == sorted([*layers, *own])
    assert metadata == {
        "format": "packforcing-compressor",
        "format_version": "1",
        "base_model": "Wan2.1-T2V-1.3B",
        "base_dim": "128",
        "frames_per_block": "4",
        "grid": "ceil(T/2) x max(1, floor(h/8)) x max(1, floor(w/8))",
        "trained_with": INFO.trained_with,
        "fusion": fusion,
    }
    text = README.read_text(encoding="utf-8")
    assert [name for name in (*keys, *metadata) if f"`{name}`" not in text] == []
    assert metadata["grid"] in text


def test_weights_are_loaded_in_the_dtype_that_is_asked_for(path):
    as_saved = load_compressor(path, CONFIG, 4).high_res
    narrow = load_compressor(path, CONFIG, 4, dtype=torch.bfloat16).high_res
    assert as_saved.layers[0].weight.dtype == torch.float32
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}


def test_layers_are_built_from_the_hosts_ops(path):
    class HostConv3d(nn.Conv3d):
        pass

    class HostOps:
        Conv3d = HostConv3d

    assert {type(layer) for layer in load_compressor(path, CONFIG, 4, ops=HostOps).high_res.layers} == {HostConv3d}


def test_a_narrow_branch_is_saved_narrow(tmp_path):
    save_compressor(tmp_path / "narrow.safetensors", trained_high_res().bfloat16(), INFO)
    assert load_compressor(tmp_path / "narrow.safetensors", CONFIG, 4).high_res.layers[4].bias.dtype == torch.bfloat16


def test_another_width_is_refused(path):
    with pytest.raises(PackForcingError, match=r"width 128 \(Wan2.1-T2V-1.3B\); this model's width is 256"):
        load_compressor(path, dataclasses.replace(CONFIG, dim=256), 4)


def test_another_block_length_is_refused(path):
    with pytest.raises(
        PackForcingError, match=r"blocks of 4 latent frames, but this render has blocks of 3.*frames_per_block to 4"
    ):
        load_compressor(path, CONFIG, 3)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format_version": "2"}, "format version 2; this version of PackForcing reads up to 1. Update"),
        ({"format_version": "one"}, "format_version is 'one' in its metadata; expected a whole number"),
        ({"base_dim": "-128"}, "base_dim is '-128' in its metadata"),
        ({"frames_per_block": "9" * 5000}, "frames_per_block is '999"),
        ({"grid": "T x h x w"}, "trained for the token grid 'T x h x w'; this version of PackForcing makes"),
        ({"format": "other"}, "lacks format 'packforcing-compressor'"),
    ],
)
def test_other_metadata_is_refused(path, metadata, message):
    rewrite(path, metadata=metadata)
    with pytest.raises(PackForcingError, match=message):
        load_compressor(path, CONFIG, 4)


GATE = {"compressor.fusion.gate": torch.zeros(128)}


@pytest.mark.parametrize(
    ("fusion", "change", "message"),
    [
        ("add", {"metadata": {"fusion": "concat"}}, "says fusion 'concat', but it has no tensor compressor.fusion"),
        ("add", {"tensors": GATE}, "says fusion 'add', but it has compressor.fusion.gate, which belongs to 'concat'"),
        ("concat", {"metadata": {"fusion": "add"}}, "says fusion 'add', but it has compressor.fusion"),
        ("concat", {"drop": "fusion"}, "names no fusion, which means 'add', but it has compressor.fusion"),
        ("concat", {"metadata": {"fusion": "product"}}, "of fusion 'product'; this version .* knows add, concat"),
    ],
)
def test_a_fusion_that_the_tensors_contradict_is_refused_and_seen_by_inspect(tmp_path, capsys, fusion, change, message):
    path = written(tmp_path, fusion)
    rewrite(path, **change)
    with pytest.raises(PackForcingError, match=message):
        load_compressor(path, CONFIG, 4)
    main(["inspect", str(path)])
    assert re.search(message, capsys.readouterr().out)


def test_a_file_that_says_no_fusion_is_of_the_first_form(path):
    rewrite(path, drop="fusion")
    assert load_compressor(path, CONFIG, 4).high_res.fusion == "add"


def test_a_concatenation_that_lacks_a_tensor_is_refused(tmp_path):
    path = written(tmp_path, "concat")
    rewrite(path, drop="compressor.fusion.join.bias")
    with pytest.raises(PackForcingError, match=r"does not fit: missing compressor\.fusion\.join\.bias;"):
        load_compressor(path, CONFIG, 4)


@pytest.mark.parametrize(
    "key", ["format_version", "base_model", "base_dim", "frames_per_block", "grid", "trained_with"]
)
def test_missing_metadata_is_named(path, key):
    rewrite(path, drop=key)
    with pytest.raises(PackForcingError, match=f"is missing {key} in its metadata"):
        load_compressor(path, CONFIG, 4)


def test_a_newer_version_is_told_before_what_it_left_out(path):
    rewrite(path, metadata={"format_version": "7"})
    rewrite(path, drop="grid")
    with pytest.raises(PackForcingError, match="format version 7"):
        load_compressor(path, CONFIG, 4)


def test_a_missing_tensor_is_named(path):
    rewrite(path, drop="compressor.high_res.2.bias")
    with pytest.raises(PackForcingError, match=r"does not fit: missing compressor\.high_res\.2\.bias;"):
        load_compressor(path, CONFIG, 4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"compressor.high_res.5.weight": torch.zeros(1)}, "unexpected compressor.high_res.5.weight"),
        ({"compressor.high_res.0.bias": torch.zeros(9)}, r"compressor.high_res.0.bias is \[9\] instead of \[8\]"),
        ({"compressor.high_res.0.bias": torch.zeros(8, dtype=torch.int8)}, "dtypes F32, I8 instead of one of"),
        ({"compressor.high_res.0.bias": torch.zeros(8).half()}, "dtypes F16, F32 instead of one of"),
    ],
)
def test_tensors_that_do_not_fit_are_named(path, tensors, message):
    rewrite(path, tensors=tensors)
    with pytest.raises(PackForcingError, match=message):
        load_compressor(path, CONFIG, 4)


def test_a_transformer_is_no_compressor(tmp_path):
    save_file(small_net().state_dict(), tmp_path / "wan.safetensors")
    with pytest.raises(PackForcingError, match=r"wan\.safetensors is no compressor"):
        load_compressor(tmp_path / "wan.safetensors", CONFIG, 4)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_compressor_of_another_project_is_named_as_such(tmp_path, suffix):
    widths, path = (16, 64, 256, 1024, 1536), tmp_path / f"model{suffix}"
    keys = (f"model.pack_compressor.net.{n}.weight" for n in (0, 2, 4, 6))
    tensors = {key: torch.zeros(1, width) for key, width in zip(keys, widths, strict=False)}
    if suffix == ".pt":
        torch.save({"generator_ema": tensors}, path)
    else:
        save_file(tensors, path)
    with pytest.raises(PackForcingError, match=r"another PackForcing project.*not ours"):
        load_compressor(path, CONFIG, 4)


def test_a_file_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PackForcingError, match="truncated"):
        load_compressor(path, CONFIG, 4)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PackForcingError, match=r"cannot be written to .*nowhere"):
        save_compressor(tmp_path / "nowhere" / "c.safetensors", trained_high_res(), INFO)


def test_a_save_that_fails_leaves_the_old_file(path):
    before = path.read_bytes()
    path.with_name(path.name + ".partial").mkdir()
    with pytest.raises(PackForcingError, match="cannot be written"):
        save_compressor(path, trained_high_res(), dataclasses.replace(INFO, frames_per_block=3))
    assert path.read_bytes() == before
