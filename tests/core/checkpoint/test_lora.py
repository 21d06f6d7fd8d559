from __future__ import annotations

import pytest
import torch

from packforcing_core.checkpoint.files import open_tensors
from packforcing_core.checkpoint.lora import convert_lora
from packforcing_core.errors import PackForcingError
from tests.checkpoints import SMALL, lora_tensors, write_comfyui_lora, write_family, write_peft_lora


@pytest.mark.parametrize("bare", [False, True])
def test_a_peft_lora_becomes_what_the_stock_node_reads(tmp_path, bare):
    output = tmp_path / "renamed.safetensors"
    count = convert_lora(write_peft_lora(tmp_path / "lora.pt", SMALL, bare=bare), output)
    stock = open_tensors(write_comfyui_lora(tmp_path / "stock.safetensors", SMALL))
    renamed = open_tensors(output)
    assert dict(renamed.tensors) == dict(stock.tensors)
    assert count == len(stock.tensors) == 2 * 10 * SMALL.num_layers
    want, got = stock.load(stock.tensors), renamed.load(renamed.tensors)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert any(tensor.any() for tensor in got.values())


def test_a_critics_lora_is_taken_only_when_asked_for(tmp_path):
    path = write_peft_lora(tmp_path / "lora.pt", SMALL)
    convert_lora(path, tmp_path / "critic.safetensors", key="critic_lora")
    critic = open_tensors(tmp_path / "critic.safetensors")
    assert len(critic.tensors) == len(lora_tensors())
    assert not any(tensor.any() for tensor in critic.load(critic.tensors).values())


def test_a_file_without_a_lora_is_refused(tmp_path):
    (path,) = write_family(tmp_path, "longlive")
    with pytest.raises(PackForcingError, match="holds no LoRA: expected"):
        convert_lora(path, tmp_path / "x.safetensors")
    with pytest.raises(PackForcingError, match="no LoRA under 'generator_lora'"):
        convert_lora(path, tmp_path / "x.safetensors", key="generator_lora")
