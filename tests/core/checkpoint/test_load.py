from __future__ import annotations

import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.checkpoint.families import by_name
from packforcing_core.checkpoint.load import inspect, read_checkpoint
from packforcing_core.errors import PackForcingError
from packforcing_core.model.ops import TorchOps, build_on_meta
from packforcing_core.model.wan import Wan
from tests.checkpoints import (
    LAYOUTS,
    SMALL,
    Layout,
    in_diffusers_names,
    lora_tensors,
    partial_compressor,
    truncate,
    wan_state_dict,
    write_comfyui_lora,
    write_family,
    write_layout,
    write_malicious,
    write_peft_lora,
    write_stock_wan,
    write_training_save,
)

STATE = wan_state_dict()


def same(got, want) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def write(path, state):
    """A bare safetensors file of a family that needs no warning."""
    save_file(state, path)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_family_loads_through_the_same_code(tmp_path, name):
    for path in write_family(tmp_path, name, STATE):
        checkpoint = read_checkpoint(path)
        assert same(checkpoint.state_dict, STATE)
        assert checkpoint.config == SMALL
        assert checkpoint.family == by_name(name)
        network = build_on_meta(lambda: Wan(SMALL, TorchOps))
        network.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
        report = inspect(path)
        assert report.usable
        assert (report.family, report.config, report.taken) == (checkpoint.family, SMALL, checkpoint.taken)
        assert report.warnings == checkpoint.warnings
        assert report.parameters == sum(tensor.numel() for tensor in STATE.values())
        assert report.dtypes == {"F32": report.parameters}
        assert not any("likely a bidirectional" in warning for warning in checkpoint.warnings)


def test_the_extra_keys_of_a_partial_packforcing_are_returned_apart(tmp_path):
    (path,) = write_family(tmp_path, "packforcing-partial", STATE)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.compressor, partial_compressor())
    assert same(checkpoint.state_dict, STATE)


@pytest.mark.parametrize("front", ["", "model.", "self_forcing."])
def test_a_compressor_of_our_own_is_returned_apart(tmp_path, front):
    ours = {"compressor.hr.0.weight": torch.ones(2, 2)}
    if front == "self_forcing.":
        path = tmp_path / "self_forcing_dmd.pt"
        torch.save({"generator_ema": STATE, **ours}, path)
    else:
        path = write(tmp_path / "self_forcing.safetensors", {front + name: STATE[name] for name in STATE} | ours)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.compressor, ours)
    assert same(checkpoint.state_dict, STATE)
    assert read_checkpoint(write_layout(tmp_path, Layout("self_forcing_dmd.pt"), STATE)).compressor is None


@pytest.mark.parametrize("key", [None, "generator_ema", "generator", "critic"])
def test_of_a_training_save_the_averaged_generator_is_taken_unless_another_is_chosen(tmp_path, key):
    parts = {name: wan_state_dict(seed=seed) for seed, name in enumerate(("critic", "generator", "generator_ema"))}
    path = write_training_save(tmp_path / "checkpoint_model_000600" / "model.pt", parts)
    checkpoint = read_checkpoint(path, key)
    assert same(checkpoint.state_dict, parts[key or "generator_ema"])
    assert checkpoint.taken == f"{key or 'generator_ema'}.model"
    assert set(checkpoint.others) == {f"{part}.model" for part in parts} - {checkpoint.taken}
    (warning,) = [warning for warning in checkpoint.warnings if "several parts" in warning]
    print(warning)
    assert f"{checkpoint.taken} is used" in warning
    assert inspect(path, key).taken == checkpoint.taken


def test_an_unknown_top_key_names_those_that_are_there(tmp_path):
    (path, *_) = write_family(tmp_path, "self-forcing", STATE)
    with pytest.raises(PackForcingError, match=r"'generator'; the file has generator_ema\.model"):
        read_checkpoint(path, "generator")


def test_the_transformer_of_an_all_in_one_file_is_taken(tmp_path):
    everything = {f"model.diffusion_model.{name}": tensor for name, tensor in STATE.items()}
    everything |= {"vae.conv1.weight": torch.ones(1), "text_encoders.umt5xxl.x": torch.ones(1)}
    checkpoint = read_checkpoint(write(tmp_path / "self_forcing.safetensors", everything))
    assert same(checkpoint.state_dict, STATE)
    assert checkpoint.taken == "model.diffusion_model"


def test_comfyuis_own_repack_is_autoregressive_by_its_metadata_alone(tmp_path):
    path = write_stock_wan(tmp_path / "renamed.safetensors", SMALL)
    assert read_checkpoint(path).family == by_name("comfyui-causal")
    assert read_checkpoint(path).warnings == ()
    path = write_stock_wan(tmp_path / "renamed.safetensors", SMALL, causal=False)
    (warning,) = read_checkpoint(path).warnings
    assert "likely a bidirectional" in warning
    assert inspect(path).warnings == (warning,)


def damaged(change):
    state = dict(STATE)
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.modulation"), "1 missing: blocks.1.modulation; expected"),
        (lambda s: s.update({"blocks.0.new.weight": torch.ones(1)}), "1 unexpected: blocks.0.new.weight"),
        (
            lambda s: s.update({"blocks.0.self_attn.q.weight": torch.ones(64, 128)}),
            r"1 of the wrong shape: blocks.0.self_attn.q.weight is \[64, 128\], expected \[128, 128\]",
        ),
        (lambda s: s.update({"blocks.3.modulation": torch.ones(1, 6, 128)}), "Got blocks.3 among 3 layers.*damaged"),
        (
            lambda s: s.update({"blocks.1.ffn.0.bias": torch.ones(256, dtype=torch.int32)}),
            "ffn.0.bias is I32; expected",
        ),
        (lambda s: s.update({"head.modulation": torch.ones(1, 2, 128, dtype=torch.int64)}), "modulation is I64; ex"),
        (lambda s: s.update({name: s[name].to(torch.uint8) for name in list(s)}), "is U8 and .* more are not weights"),
        (lambda s: s.pop("text_embedding.0.weight"), "no text_embedding.0.weight"),
        (lambda s: s.update({"img_emb.proj.0.bias": torch.ones(1280)}), "image-to-video.*T2V"),
        (lambda s: s.update({"patch_embedding.weight": torch.ones(128, 36, 1, 2, 2)}), "36 input channels.*T2V"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_inspected_alike(tmp_path, change, message):
    path = write(tmp_path / "self_forcing.safetensors", damaged(change))
    with pytest.raises(PackForcingError, match=message) as refusal:
        read_checkpoint(path)
    report = inspect(path)
    assert report.kind == "transformer"
    assert not report.usable
    assert report.problems[0] in str(refusal.value)


@pytest.mark.parametrize("where", ["comfyui", "peft", "peft bare"])
def test_a_lora_without_its_base_is_answered_with_what_to_do(tmp_path, where):
    if where == "comfyui":
        path = write_comfyui_lora(tmp_path / "lora.safetensors", SMALL, rank=4)
    else:
        path = write_peft_lora(tmp_path / "lora.pt", SMALL, rank=4, bare="bare" in where)
    with pytest.raises(
        PackForcingError, match=r"LoRA of rank 4 without its base.*base checkpoint.*LoraLoaderModelOnly"
    ):
        read_checkpoint(path)
    report = inspect(path)
    assert (report.kind, report.usable) == ("lora", False)
    assert ("convert-lora" in report.advice) == (where != "comfyui")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("decoder.middle.0.residual.0.gamma", "vae", "a Wan VAE"),
        ("first_stage_model.decoder.middle.0.residual.0.gamma", "vae", "a Wan VAE"),
        ("decoder.conv_in.weight", "vae", "a VAE of another family"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "text encoder", "a T5 text encoder"),
        ("blocks.0.attn.q.weight", "text encoder", "Wan's own umT5"),
        ("compressor.hr.0.weight", "compressor", "compressor weights"),
        ("something.else", "unknown", "an unknown kind"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(tmp_path, name, kind, words):
    path = write(tmp_path / "x.safetensors", {name: torch.ones(3)})
    report = inspect(path)
    assert report.kind == kind
    assert words in report.title
    assert report.parameters == 3
    with pytest.raises(PackForcingError, match=words):
        read_checkpoint(path)


def test_diffusers_names_are_read_bit_for_bit(tmp_path):
    folder = tmp_path / "Self-Forcing-diffusers" / "transformer"
    folder.mkdir(parents=True)
    named = in_diffusers_names(STATE)
    assert len(named) == len(STATE)
    assert not {"head.head.weight", "blocks.0.self_attn.q.weight"} & set(named)
    checkpoint = read_checkpoint(write(folder / "diffusion_pytorch_model.safetensors", named))
    assert same(checkpoint.state_dict, STATE)
    assert checkpoint.family == by_name("self-forcing")
    both = {**named, **{name: STATE[name].clone() for name in ("head.head.weight", "head.modulation")}}
    with pytest.raises(PackForcingError, match="under diffusers' names and under Wan's own"):
        read_checkpoint(write(folder / "both.safetensors", both))


def test_minwms_camera_path_is_left_out_and_said(tmp_path):
    for path in write_family(tmp_path, "minwm", STATE):
        checkpoint = read_checkpoint(path)
        assert (checkpoint.family.name, checkpoint.family.frames_per_block) == ("minwm", 4)
        assert same(checkpoint.state_dict, STATE)
        assert any("4 tensors are not used: minWM's camera path" in warning for warning in checkpoint.warnings)
        assert inspect(path).how[0].startswith("keys: only minWM has")
        assert inspect(path).how[-1].startswith("shapes: Wan2.1 T2V")


def five_b():
    return {**STATE, "patch_embedding.weight": torch.ones(128, 48, 1, 2, 2), "head.head.weight": torch.ones(192, 128)}


def without(part: str, *added: str):
    kept = {name: tensor for name, tensor in STATE.items() if part not in name}
    return kept | {f"blocks.{layer}.{name}": torch.ones(8, 128) for layer in range(2) for name in added}


def in_peft_names():
    """The base and its LoRA as PEFT names them together: every layer with a LoRA is its `base_layer` and two halves."""
    lora = {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora_tensors().items()}
    adapted = {name.rsplit(".lora_", 1)[0] for name in lora}
    base = {}
    for name, tensor in STATE.items():
        layer, _, kind = name.rpartition(".")
        base[f"{layer}.base_layer.{kind}" if layer in adapted else name] = tensor
    return {f"base_model.model.{name}": tensor for name, tensor in (base | lora).items()}


@pytest.mark.parametrize(
    ("file", "state", "words"),
    [
        ("LongLive-2.0-5B/model_bf16.safetensors", five_b(), "Wan2.2 TI2V-5B of 48 latent channels, as LongLive 2.0"),
        (
            "stage3_la6_sink1/model.safetensors",
            without(".self_attn.k.", "self_attn.kv_down.weight", "self_attn.k_up.weight"),
            r"another self-attention, as VideoMLA has \(it has .*kv_down",
        ),
        ("turbo.safetensors", without(".q.weight", "self_attn.q.int8_weight", "self_attn.q.scale"), "TurboDiffusion"),
        (
            "cmgrpo_raven_full.safetensors",
            in_peft_names(),
            r"unmerged.*cmgrpo_raven_merge\.pt",
        ),
    ],
)
def test_a_relative_that_cannot_be_sampled_is_refused_by_its_name(tmp_path, file, state, words):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    write(path, state)
    with pytest.raises(PackForcingError, match=words) as refusal:
        read_checkpoint(path)
    report = inspect(path)
    print(refusal.value)
    assert (report.kind, report.usable, report.usable_by_host, report.family) == ("foreign", False, False, None)
    assert report.title in str(refusal.value)


def test_one_far_layer_number_costs_no_time_and_no_memory(tmp_path):
    path = write(tmp_path / "self_forcing.safetensors", {**STATE, "blocks.300000.modulation": torch.ones(1, 6, 128)})
    tracemalloc.start()
    report = inspect(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak / 1e6:.1f} MB: {report.problems[0]}")
    assert not report.usable_by_host
    assert peak < 10e6


def test_truncated_and_malicious_files_are_refused_before_anything_else(tmp_path):
    (path, *_) = write_family(tmp_path, "self-forcing", STATE)
    for read in (read_checkpoint, inspect):
        with pytest.raises(PackForcingError, match="truncated"):
            read(truncate(path))
        with pytest.raises(PackForcingError, match="refused"):
            read(write_malicious(tmp_path / "evil.pt", tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


def test_inspecting_a_safetensors_file_reads_its_header_alone(tmp_path):
    path = write_stock_wan(tmp_path / "x.safetensors", SMALL)
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with path.open("r+b") as file:  # the same length, as a sparse file: not one weight is left
        file.truncate(header)
        file.truncate(size)
    report = inspect(path)
    assert report.usable
    assert report.file_bytes == size
    assert not any(tensor.any() for tensor in read_checkpoint(path).state_dict.values())
