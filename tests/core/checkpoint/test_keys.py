from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packforcing_core.checkpoint.keys import (
    FRONTS,
    WRAPPERS,
    check_keys,
    choose_group,
    expected_shapes,
    group_names,
    is_lora_name,
    set_compressor_aside,
    split_name,
)
from packforcing_core.errors import PackForcingError
from packforcing_core.model.ops import TorchOps, build_on_meta
from packforcing_core.model.wan import Wan
from tests.checkpoints import SMALL, SMALL_STOCK

NAMES = list(expected_shapes(SMALL))


@pytest.mark.parametrize("config", [SMALL, SMALL_STOCK])
def test_the_key_table_is_the_networks_own(config):
    network = build_on_meta(lambda: Wan(config, TorchOps)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in network.items()} == expected_shapes(config)


@pytest.mark.parametrize(
    ("name", "front"),
    [
        ("blocks.0.ffn.0.weight", ""),
        ("model.blocks.0.ffn.0.weight", "model"),
        ("diffusion_model.blocks.0.ffn.0.weight", "diffusion_model"),
        ("model.diffusion_model.blocks.0.ffn.0.weight", "model.diffusion_model"),
        ("net.blocks.0.ffn.0.weight", "net"),
        ("generator_ema.model.blocks.0.ffn.0.weight", "generator_ema.model"),
        ("state_dict.generator.model.blocks.0.ffn.0.weight", "state_dict.generator.model"),
        ("model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.ffn.0.weight", "model"),
        ("_orig_mod.model.blocks.0._checkpoint_wrapped_module._orig_mod.ffn._fsdp_wrapped_module.0.weight", "model"),
    ],
)
def test_prefixes_come_off_at_any_depth(name, front):
    assert split_name(name) == (front, "blocks.0.ffn.0.weight")


@given(
    name=st.sampled_from(NAMES),
    fronts=st.lists(st.sampled_from(sorted(FRONTS)), max_size=4),
    wrappers=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(sorted(WRAPPERS))), max_size=5),
)
def test_the_official_name_is_found_behind_any_front_and_wrappers(name, fronts, wrappers):
    segments = [*fronts, *name.split(".")]
    for place, wrapper in wrappers:
        segments.insert(min(place, len(segments) - 1), wrapper)
    assert split_name(".".join(segments)) == (".".join(fronts), name)


def test_two_names_that_become_one_are_refused():
    with pytest.raises(PackForcingError, match=r"head.modulation twice"):
        group_names(["head.modulation", "_orig_mod.head.modulation"])


def fronts_of(*fronts):
    return {front: dict.fromkeys(NAMES, "") for front in fronts}


@pytest.mark.parametrize(
    ("fronts", "key", "preferred", "taken"),
    [
        (("critic.model", "generator.model", "generator_ema.model"), None, (), "generator_ema.model"),
        (("critic.model", "generator.model", "generator_ema.model"), None, ("generator",), "generator.model"),
        (("critic.model", "generator.model", "generator_ema.model"), "generator", (), "generator.model"),
        (("critic.model", "generator.model", "generator_ema.model"), "critic", (), "critic.model"),
        (("critic.model", "generator.model"), "critic.model", (), "critic.model"),
        (("critic.model", "other"), None, (), "other"),
        (("critic_lora.model", "other"), None, (), "other"),
        (("critic.model", "model"), None, ("model",), "model"),
        (("model.diffusion_model",), None, ("generator_ema",), "model.diffusion_model"),
        (("",), None, ("generator_ema",), ""),
        ((), None, (), None),
    ],
)
def test_the_averaged_generator_goes_first_and_critics_last_unless_chosen(fronts, key, preferred, taken):
    assert choose_group(fronts_of(*fronts), key, preferred) == taken


def test_a_key_that_is_not_there_names_those_that_are():
    with pytest.raises(PackForcingError, match=r"'generator_ema'; the file has generator.model, critic.model"):
        choose_group(fronts_of("generator.model", "critic.model"), "generator_ema")


def test_every_difference_is_reported():
    shapes = expected_shapes(SMALL)
    assert check_keys(shapes, SMALL).exact
    wrong = {**shapes, "blocks.0.ffn.0.bias": (255,), "blocks.0.extra.weight": (1,)}
    del wrong["blocks.1.modulation"]
    report = check_keys(wrong, SMALL)
    assert report.missing == ("blocks.1.modulation",)
    assert report.unexpected == ("blocks.0.extra.weight",)
    assert report.wrong_shape == (("blocks.0.ffn.0.bias", (255,), (256,)),)
    text = report.describe()
    print(text)
    assert "1 missing: blocks.1.modulation" in text
    assert "1 unexpected: blocks.0.extra.weight" in text
    assert "blocks.0.ffn.0.bias is [255], expected [256]" in text


def test_a_long_report_names_the_first_and_counts_the_rest():
    report = check_keys({}, SMALL)
    assert len(report.missing) == len(NAMES)
    assert f"{len(NAMES)} missing: {NAMES[0]}, {NAMES[1]} and {len(NAMES) - 2} more" == report.describe(most=2)


def test_compressor_names_are_set_aside():
    names = ["head.modulation", "pack_compressor.net.0.weight", "compressor.hr.0.weight"]
    assert set_compressor_aside(names) == (names[:1], names[1:])


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", True),
        ("blocks.0.self_attn.q.lora_B.default.weight", True),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", True),
        ("blocks.0.self_attn.q.lora_up.weight", True),
        ("transformer.blocks.0.attn1.to_q.lora.up.weight", True),
        ("lora_unet_blocks_0_self_attn_q.alpha", True),
        ("blocks.0.self_attn.q.weight", False),
        ("blocks.0.flora_A.weight", False),
    ],
)
def test_lora_names_are_told_from_weights(name, lora):
    assert is_lora_name(name) == lora
