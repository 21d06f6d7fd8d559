from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.checkpoint.files import open_tensors
from packforcing_core.checkpoint.load import inspect
from packforcing_core.checkpoint.lora import convert_lora
from packforcing_core.checkpoint.merge import merged, open_lora, require_fit
from packforcing_core.errors import PackForcingError
from tests.checkpoints import (
    SMALL,
    lora_tensors,
    wan_state_dict,
    write_comfyui_lora,
    write_family,
    write_peft_lora,
)


@pytest.mark.parametrize("bare", [False, True])
def test_a_peft_lora_becomes_what_the_stock_node_reads(tmp_path, bare):
    output = tmp_path / "renamed.safetensors"
    count = convert_lora(write_peft_lora(tmp_path / "lora.pt", SMALL, bare=bare), output)
    stock = open_tensors(write_comfyui_lora(tmp_path / "stock.safetensors", SMALL))
    renamed = open_tensors(output)
    assert dict(renamed.tensors) == dict(stock.tensors)
    assert count.tensors == len(stock.tensors) == 2 * 10 * SMALL.num_layers
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


def in_diffusers_names(layer):
    for official, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"), (".ffn.0", ".ffn.net.0.proj"),
                             (".ffn.2", ".ffn.net.2")):  # fmt: skip
        layer = layer.replace(official, theirs)
    return re.sub(r"\.([qkvo])$", lambda found: ".to_out.0" if found[1] == "o" else f".to_{found[1]}", layer)


def flat(layer):
    return layer.replace(".", "_")


A_B, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
LAYOUTS = {
    "native": (lambda layer: f"diffusion_model.{layer}", A_B),
    "bare": (lambda layer: layer, A_B),
    "DiffSynth": (lambda layer: layer, ("lora_A.default.weight", "lora_B.default.weight")),
    "transformer prefix": (lambda layer: f"transformer.{layer}", A_B),
    "diffusers": (lambda layer: f"transformer.{in_diffusers_names(layer)}", A_B),
    "diffusers without a prefix": (in_diffusers_names, A_B),
    "PEFT": (lambda layer: f"base_model.model.{layer}", ("lora_A.default.weight", "lora_B.default.weight")),
    "PEFT of diffusers": (lambda layer: f"base_model.model.{in_diffusers_names(layer)}", A_B),
    "processors": (
        lambda layer: f"unet.{in_diffusers_names(layer).removesuffix('.0').replace('.to_', '.processor.to_')}_lora",
        ("down.weight", "up.weight"),
    ),
    "kohya": (lambda layer: f"lora_unet_{flat(layer)}", DOWN_UP),
    "kohya of diffusers": (lambda layer: f"lora_unet_{flat(in_diffusers_names(layer))}", DOWN_UP),
    "OneTrainer": (lambda layer: f"lora_transformer_{flat(in_diffusers_names(layer))}", DOWN_UP),
    "SimpleTuner": (lambda layer: f"lycoris_{flat(layer)}", DOWN_UP),
    "dots": (lambda layer: f"diffusion_model.{layer}", ("lora.down.weight", "lora.up.weight")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_what_the_native_loader_reads(tmp_path, name):
    spelt, halves = LAYOUTS[name]
    content, want = {}, {}
    for key, tensor in lora_tensors().items():
        layer, half = key.rsplit(".lora_", 1)
        if name == "processors" and "attn" not in layer:
            continue
        content[f"{spelt(layer)}.{halves[half.startswith('B')]}"] = tensor
        want[layer, half[0]] = tensor
    save_file(content, tmp_path / "lora.safetensors")
    print(next(iter(content)))
    converted = convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    assert (converted.tensors, converted.width) == (len(want), SMALL.dim)
    assert len(got) == len(want)
    for key, tensor in got.items():
        found = re.fullmatch(r"diffusion_model\.(.+?)\.lora[_.](A|B|down|up)(?:\.weight)?", key)
        assert torch.equal(tensor, want[found[1], {"down": "A", "up": "B"}.get(found[2], found[2])])
    report = inspect(tmp_path / "lora.safetensors")
    assert report.kind == "lora"
    assert "for a Wan of width 128" in report.title


def test_ravens_lora_also_changes_the_embeddings_and_the_head(tmp_path):
    # Its names are PEFT's for one adapter; it has no alpha, since alpha and rank are 256 in its training.
    layers = ["time_embedding.0", "time_embedding.2", "time_projection.1", "text_embedding.0", "text_embedding.2",
              "head.head", *(key.rsplit(".lora_", 1)[0] for key in lora_tensors() if "lora_A" in key)]  # fmt: skip
    base, content = wan_state_dict(), {}
    for layer in layers:
        rows, columns = base[f"{layer}.weight"].shape
        content[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(4, columns)
        content[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(rows, 4)
    path = tmp_path / "cmgrpo_raven_lora.safetensors"
    save_file(content, path)
    lora = open_lora(path)
    assert require_fit(lora, SMALL) == ()
    got = merged(base, [(lora, 1.0)], SMALL)
    assert {name for name in base if not torch.equal(got[name], base[name])} == {f"{layer}.weight" for layer in layers}
    name = "base_model.model.head.head.lora_{}.weight"
    want = base["head.head.weight"] + content[name.format("B")] @ content[name.format("A")]
    assert torch.allclose(got["head.head.weight"], want, atol=1e-5)
    assert convert_lora(path, tmp_path / "out.safetensors").tensors == len(content)
    report = inspect(path)
    assert report.kind == "lora"
    assert report.how == (
        "name: 'cmgrpo_raven' in the file's name",
        "so it belongs with RAVEN: blocks of 3, steps 1000, 750, 500, 250, shift 5, window 21, sink 0",
    )


@pytest.mark.parametrize("file", ["style.safetensors", "wan2.1_t2v_style.safetensors"])
def test_a_lora_of_no_family_says_nothing_of_one(tmp_path, file):
    save_file(PAIR, tmp_path / file)
    assert inspect(tmp_path / file).how == ()


@pytest.mark.parametrize(("width", "name"), [(1536, "Wan2.1 1.3B"), (5120, "Wan2.1 14B")])
def test_a_lora_says_for_which_size_it_was_made(tmp_path, width, name):
    pair = {
        f"transformer.{LAYER}.lora_A.weight": torch.ones(4, width),
        f"transformer.{LAYER}.lora_B.weight": torch.ones(width, 4),
    }
    save_file(pair, tmp_path / "lora.safetensors")
    assert inspect(tmp_path / "lora.safetensors").title == f"a LoRA of rank 4 without its base for {name}"
    assert convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors").made_for == name


@pytest.mark.parametrize(
    ("told", "strength"),
    [({"lora_alpha": 8, "r": 4}, 2.0), ({"lora_alpha": 4, "r": 4}, 1.0), ({"lora_alpha": 8, "use_rslora": True}, 4.0)],
)
@pytest.mark.parametrize("where", ["diffusers", "PEFT"])
def test_the_strength_that_stands_beside_the_layers_is_kept(tmp_path, told, strength, where):
    if where == "PEFT":
        path = tmp_path / "adapter_model.safetensors"
        save_file({f"base_model.model.{name}": tensor for name, tensor in PAIR.items()}, path)
        (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    else:
        path = tmp_path / "lora.safetensors"
        table = json.dumps({f"transformer.{key}": value for key, value in told.items()})
        save_file(
            {f"transformer.{name}": t for name, t in PAIR.items()}, path, metadata={"lora_adapter_metadata": table}
        )
    convert_lora(path, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")[f"diffusion_model.{LAYER}.alpha"].item() / 4 == strength


@pytest.mark.parametrize(
    "table",
    ["{", "[]", "{}", '{"lora_alpha": "x"}', '{"lora_alpha": 4, "rank_pattern": {"a": 1}}'],
)
def test_a_description_that_tells_no_strength_is_refused(tmp_path, table):
    save_file(PAIR, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": table})
    with pytest.raises(PackForcingError, match=r"has no valid lora_alpha|a separate alpha for each layer"):
        convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors")


def test_a_lora_of_an_image_to_video_model_is_called_so(tmp_path):
    layer = "blocks.0.cross_attn.k_img"
    content = PAIR | {f"{layer}.lora_A.weight": torch.ones(4, 128), f"{layer}.lora_B.weight": torch.ones(128, 4)}
    with pytest.raises(PackForcingError, match=r"k_img.*image-to-video"):
        convert(tmp_path, content)


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
        ({"critic": PAIR}, r"only the LoRA of a critic \(critic\)"),
        (PAIR | {f"{LAYER}.lora_magnitude_vector": torch.ones(128)}, "holds .*magnitude_vector, which .* ignore"),
        (PAIR | {"blocks.0.norm3.weight": torch.ones(128)}, "holds blocks.0.norm3.weight, which .* ignore"),
        (PAIR | {"blocks.lora_A.weight": torch.ones(1)}, "holds blocks.lora_A.weight, which .* ignore"),
        (PAIR | {"lora_A.weight": torch.ones(1)}, "holds lora_A.weight, which .* ignore"),
        ({f"fake_score.{name}": tensor for name, tensor in PAIR.items()}, "holds fake_score.*, which .* ignore"),
        (
            PAIR | {f"{LAYER}.lora_A.other.weight": torch.ones(4, 128)},
            "lora_A.weight twice, as .*expected a single adapter",
        ),
        (PAIR | {f"{LAYER}.alpha": torch.ones(4)}, r"alpha of shape \[4\]; expected one number"),
        (
            {"generator_lora": {"model": PAIR, "alpha": torch.ones(1)}},
            "holds generator_lora.alpha, which belongs to no layer",
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
    with pytest.raises(PackForcingError, match=r"cannot be written|is the input file"):
        convert_lora(path, tmp_path / output)
    assert path.read_bytes() == before


def test_tensors_that_share_memory_are_written(tmp_path):
    square = torch.ones(128, 128)
    got = convert(tmp_path, {f"{LAYER}.lora_A.weight": square, f"{LAYER}.lora_B.weight": square})
    assert len(got) == 2
