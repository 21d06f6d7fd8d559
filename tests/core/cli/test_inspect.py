from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.cli.main import main
from tests.checkpoints import (
    partial_compressor,
    truncate,
    wan_state_dict,
    write_comfyui_lora,
    write_context,
    write_family,
    write_peft_lora,
    write_stock_wan,
    write_training_save,
)
from tests.vaes import random_vae


def inspect(capsys, path, *arguments: str) -> dict:
    status = main(["inspect", str(path), "--json", *arguments])
    return {"status": status, **json.loads(capsys.readouterr().out)}


def test_a_familys_checkpoint_is_told_with_its_sampling(tmp_path, capsys):
    [path] = write_family(tmp_path, "longlive")
    found = inspect(capsys, path)
    assert (found["status"], found["kind"]) == (0, "transformer")
    assert found["what"].startswith("a Wan2.1 T2V transformer")
    assert "width 128, 2 layers, 1 heads, feed-forward 256" in found["transformer"]
    assert found["taken from"] == "generator.model"
    assert "blocks of 3, steps 1000, 750, 500, 250, shift 5, window 12, sink 3" in found["preset"]
    assert "--checkpoint" in found["advice"]


def test_a_training_save_says_which_part_is_taken_and_obeys_the_key(tmp_path, capsys):
    parts = {"generator": wan_state_dict(), "generator_ema": wan_state_dict(seed=1)}
    path = write_training_save(tmp_path / "model.pt", parts)
    assert inspect(capsys, path)["taken from"].startswith("generator_ema")
    assert inspect(capsys, path, "--key", "generator")["taken from"].startswith("generator.")


def test_every_other_kind_is_named_with_advice(tmp_path, capsys):
    save_file(random_vae().state_dict(), tmp_path / "vae.safetensors")
    save_file({f"model.{name}": t for name, t in partial_compressor().items()}, tmp_path / "compressor.safetensors")
    save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4)}, tmp_path / "t5.safetensors")
    save_file({"something": torch.zeros(3)}, tmp_path / "unknown.safetensors")
    expected = [
        (tmp_path / "vae.safetensors", "vae", "models/vae"),
        (tmp_path / "t5.safetensors", "text encoder", "models/text_encoders"),
        (write_comfyui_lora(tmp_path / "lora.safetensors"), "lora", "LoraLoaderModelOnly"),
        (write_peft_lora(tmp_path / "lora.pt"), "lora", "Its key names are not those"),
        (tmp_path / "compressor.safetensors", "compressor", "compressor widget"),
        (write_context(tmp_path / "context.safetensors"), "unknown", "Expected a Wan2.1"),
        (tmp_path / "unknown.safetensors", "unknown", "Expected a Wan2.1"),
    ]
    for path, kind, advice in expected:
        found = inspect(capsys, path)
        assert found["kind"] == kind, f"{path.name} is {found['what']}"
        assert advice in found["advice"]


def test_a_likely_bidirectional_file_gets_a_warning_and_a_broken_one_a_problem(tmp_path, capsys):
    found = inspect(capsys, write_stock_wan(tmp_path / "wan.safetensors", causal=False))
    assert found["status"] == 0
    assert "likely a bidirectional model" in found["warning"][0]

    weights = wan_state_dict()
    del weights["head.head.bias"]
    save_file(weights, tmp_path / "holey.safetensors")
    found = inspect(capsys, tmp_path / "holey.safetensors")
    assert found["status"] == 1
    assert "head.head.bias" in found["problem"][0]


def test_without_json_the_same_is_a_table(tmp_path, capsys):
    path = write_stock_wan(tmp_path / "wan.safetensors", causal=False)
    told = inspect(capsys, path)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    rows = [value for name, value in told.items() if name != "status"]
    for value in (line for row in rows for line in (row if isinstance(row, list) else [row])):
        assert value in said


@pytest.mark.parametrize("damage", ["missing", "truncated", "folder"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, capsys, damage):
    path = tmp_path / "file.safetensors"
    if damage == "truncated":
        truncate(write_stock_wan(path))
    elif damage == "folder":
        path.mkdir()
    assert main(["inspect", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    print(captured.err)
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "file.safetensors" in captured.err
