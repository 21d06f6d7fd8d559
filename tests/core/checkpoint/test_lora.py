from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

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


LAYER = "blocks.0.self_attn.q"
PAIR = {f"{LAYER}.lora_A.weight": torch.ones(4, 128), f"{LAYER}.lora_B.weight": torch.ones(128, 4)}


def convert(folder, content, **choice):
    torch.save(content, folder / "lora.pt")
    convert_lora(folder / "lora.pt", folder / "out.safetensors", **choice)
    return load_file(folder / "out.safetensors")


def test_alpha_and_the_scale_of_dora_stay_beside_their_layer(tmp_path):
    beside = {f"{LAYER}.alpha": torch.tensor(2.0), f"{LAYER}.dora_scale": torch.ones(128, 1)}
    lora = {f"base_model.model.{name}": tensor for name, tensor in (PAIR | beside).items()}
    got = convert(tmp_path, {"generator_lora": lora})
    assert set(got) == {f"diffusion_model.{name}" for name in PAIR | beside}
    assert got[f"diffusion_model.{LAYER}.alpha"].item() == 2


def test_names_without_dots_are_read_as_they_are(tmp_path):
    flat = {
        "lora_unet_blocks_0_ffn_0.lora_down.weight": torch.ones(4, 128),
        "lora_unet_blocks_0_ffn_0.alpha": torch.ones(1),
    }
    flat["lora_unet_blocks_0_ffn_0.lora_up.weight"] = torch.ones(256, 4)
    assert set(convert(tmp_path, flat)) == set(flat)


@pytest.mark.parametrize(
    ("tops", "key", "taken"),
    [
        (("critic", "generator"), None, "generator"),
        (("generator", "generator_ema", "critic"), None, "generator_ema"),
        (("critic_lora", "generator_lora"), None, "generator_lora"),
        (("generator", "generator_ema"), "generator", "generator"),
        (("critic", "generator"), "critic", "critic"),
    ],
)
def test_one_part_is_taken_by_the_order_of_checkpoints(tmp_path, tops, key, taken):
    parts = {
        top: {f"model.{name}": torch.full_like(tensor, place) for name, tensor in PAIR.items()}
        for place, top in enumerate(tops)
    }
    got = convert(tmp_path, parts, key=key)
    assert {tensor.flatten()[0].item() for tensor in got.values()} == {tops.index(taken)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"critic": PAIR}, r"no LoRA but a critic's \(critic\)"),
        (PAIR | {f"{LAYER}.lora_magnitude_vector": torch.ones(128)}, "holds .*magnitude_vector, which .* leave out"),
        (PAIR | {"blocks.0.norm3.weight": torch.ones(128)}, "holds blocks.0.norm3.weight, which .* leave out"),
        (PAIR | {"lora_A.weight": torch.ones(1)}, "holds lora_A.weight, which .* leave out"),
        ({f"fake_score.{name}": tensor for name, tensor in PAIR.items()}, "holds fake_score.*, which .* leave out"),
        (PAIR | {f"{LAYER}.lora_A.other.weight": torch.ones(4, 128)}, "lora_A.weight twice, as .*expected one adapter"),
        (PAIR | {f"{LAYER}.alpha": torch.ones(4)}, r"alpha of shape \[4\]; expected one number"),
        (
            {"generator_lora": {"model": PAIR, "alpha": torch.ones(1)}},
            "holds generator_lora.alpha apart from any layer",
        ),
        (
            {name: tensor for name, tensor in PAIR.items() if "lora_A" in name},
            "lora_A.weight without its lora_B.weight",
        ),
        (
            {name: tensor for name, tensor in PAIR.items() if "lora_B" in name},
            "lora_B.weight without its lora_A.weight",
        ),
    ],
)
def test_what_the_stock_loader_would_leave_out_is_refused(tmp_path, content, message):
    with pytest.raises(PackForcingError, match=message):
        convert(tmp_path, content)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("output", ["missing/x.safetensors", "", f"{'x' * 300}.safetensors", "lora.pt"])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, output):
    path = write_peft_lora(tmp_path / "lora.pt")
    before = path.read_bytes()
    with pytest.raises(PackForcingError, match=r"cannot be written|is the LoRA itself"):
        convert_lora(path, tmp_path / output)
    assert path.read_bytes() == before


def test_tensors_that_share_memory_are_written(tmp_path):
    square = torch.ones(128, 128)
    got = convert(tmp_path, {f"{LAYER}.lora_A.weight": square, f"{LAYER}.lora_B.weight": square})
    assert len(got) == 2
