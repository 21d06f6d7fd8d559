"""LoRAs on a checkpoint: the weights with them, what does not fit, and a wrong LoRA, which is named before any work."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core import api
from packforcing_core.checkpoint.load import read_checkpoint
from packforcing_core.checkpoint.lora import convert_lora
from packforcing_core.checkpoint.merge import merged, named_lora, open_lora, require_fit
from packforcing_core.errors import PackForcingError
from packforcing_core.miniature.load import read_model
from packforcing_core.model.config import WAN_SIZES
from tests.checkpoints import SMALL, lora_tensors, wan_state_dict, write_family, write_peft_lora
from tests.core.checkpoint.test_lora import LAYER, LAYOUTS, PAIR
from tests.exactness import SHALLOW, steps_off
from tests.vaes import TINY, random_vae

STATE = wan_state_dict()


def written(folder, name, tensors):
    """`tensors` ("<layer>.lora_A.weight") in the layout `name`."""
    spelt, halves = LAYOUTS[name]
    content = {}
    for key, tensor in tensors.items():
        layer, half = key.rsplit(".lora_", 1)
        if name != "processors" or "attn" in layer:
            content[f"{spelt(layer)}.{halves[half.startswith('B')]}"] = tensor
    save_file(content, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_added_as_in_float64(tmp_path, name):
    tensors = lora_tensors()
    lora = open_lora(written(tmp_path, name, tensors))
    assert require_fit(lora, SMALL) == ()
    got = merged(STATE, [(lora, 0.7)], SMALL)
    changed = [key for key in STATE if not torch.equal(got[key], STATE[key])]
    layers = {key.rsplit(".lora_", 1)[0] for key in tensors}
    assert changed == [key for key in STATE if key.removesuffix(".weight") in lora.layers]
    assert set(lora.layers) == {layer for layer in layers if name != "processors" or "attn" in layer}
    worst = max(
        steps_off(
            got[f"{layer}.weight"],
            STATE[f"{layer}.weight"].double()
            + 0.7 * tensors[f"{layer}.lora_B.weight"].double() @ tensors[f"{layer}.lora_A.weight"].double(),
        )
        for layer in lora.layers
    )
    print(f"{worst:.1f} rounding steps from float64")
    assert worst < SHALLOW


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_lora_of_another_size_is_named_with_both_sizes(tmp_path, name):
    for config in (WAN_SIZES["1.3B"], WAN_SIZES["14B"]):
        lora = open_lora(written(tmp_path, name, lora_tensors()))
        with pytest.raises(PackForcingError, match=r"lora\.safetensors matches no layer") as refused:
            require_fit(lora, config)
        print(refused.value)
        assert "made for a Wan of width 128" in str(refused.value)
        assert "would change nothing. Use a LoRA made for this model" in str(refused.value)


def test_for_the_demo_no_lora_is_advised(tmp_path):
    lora = open_lora(written(tmp_path, "bare", lora_tensors()))
    with pytest.raises(PackForcingError, match="No LoRA fits a miniature such as the demo's") as refused:
        require_fit(lora, read_model().config)
    assert "Use a LoRA" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ({"lora_unet_down_blocks_0_attentions_0.lora_down.weight": torch.ones(4, 128)}, "down_blocks"),
        ({"double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(4, 128)}, "double_blocks"),
        ({f"{LAYER}.lora_A.weight": torch.ones(4, 64), f"{LAYER}.lora_B.weight": torch.ones(64, 4)}, "width 64"),
    ],
)
def test_a_lora_of_another_family_is_named_with_what_it_holds(tmp_path, content, holds):
    save_file(content, tmp_path / "other.safetensors")
    with pytest.raises(PackForcingError, match=rf"other\.safetensors matches no layer.*{holds}") as refused:
        require_fit(open_lora(tmp_path / "other.safetensors"), SMALL)
    print(refused.value)


def test_what_fits_in_part_says_what_is_left_out(tmp_path):
    far = {name.replace("blocks.0", "blocks.30"): tensor.clone() for name, tensor in PAIR.items()}
    image = {f"blocks.0.cross_attn.k_img.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    save_file({**PAIR, **far, **image}, tmp_path / "lora.safetensors")
    (note,) = require_fit(open_lora(tmp_path / "lora.safetensors"), SMALL)
    print(note)
    assert "blocks.30" in note
    assert "and 2 more" in note


@pytest.mark.parametrize(("alpha", "scale"), [(8.0, 2.0), (1.0, 0.25), (None, 1.0)])
def test_alpha_over_rank_is_the_scale_before_and_after_converting(tmp_path, alpha, scale):
    tensors = {**PAIR, **({} if alpha is None else {f"{LAYER}.alpha": torch.tensor(alpha)})}
    save_file(tensors, tmp_path / "lora.safetensors")
    convert_lora(tmp_path / "lora.safetensors", tmp_path / "native.safetensors")
    want = STATE[f"{LAYER}.weight"] + scale * PAIR[f"{LAYER}.lora_B.weight"] @ PAIR[f"{LAYER}.lora_A.weight"]
    for name in ("lora", "native"):
        got = merged(STATE, [(open_lora(tmp_path / f"{name}.safetensors"), 1.0)], SMALL)
        assert steps_off(got[f"{LAYER}.weight"], want) < SHALLOW


def test_a_critics_lora_is_not_taken_and_strengths_have_a_range(tmp_path):
    path = write_peft_lora(tmp_path / "lora.pt")
    lora = open_lora(path)
    assert all(there.startswith("generator_lora.") for layer in lora.layers.values() for there in layer.values())
    with pytest.raises(PackForcingError, match="lora_strength is 1000"):
        merged(STATE, [(lora, 1000.0)], SMALL)
    assert named_lora("a@b.pt@0.5")[1] == 0.5
    assert [str(named_lora(text)[0]) for text in ("a.pt", "a@b.pt")] == ["a.pt", "a@b.pt"]


def test_the_api_adds_a_lora_and_refuses_one_that_fits_nothing(tmp_path):
    checkpoint = write_family(tmp_path, "self-forcing")[0]
    save_file(random_vae(TINY).state_dict(), tmp_path / "vae.safetensors")
    fitting = written(tmp_path, "bare", lora_tensors())
    vae = tmp_path / "vae.safetensors"
    plain, styled = (api.load_models(checkpoint, vae, loras=loras) for loras in ({}, {fitting: 1.0}))
    want = merged(read_checkpoint(checkpoint).state_dict, [(open_lora(fitting), 1.0)], SMALL)
    got = styled.model.net.state_dict()
    assert all(torch.equal(got[name], want[name].float()) for name in want)
    assert not torch.equal(got[f"{LAYER}.weight"], plain.model.net.state_dict()[f"{LAYER}.weight"])
    save_file({f"{LAYER}.lora_A.weight": torch.ones(4, 64), f"{LAYER}.lora_B.weight": torch.ones(64, 4)}, fitting)
    with pytest.raises(PackForcingError, match="matches no layer of this checkpoint"):
        api.load_models(checkpoint, tmp_path / "no vae is looked for", loras={fitting: 1.0})
