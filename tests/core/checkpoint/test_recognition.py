from __future__ import annotations

import pytest

from packforcing_core.checkpoint.families import DEFAULT_FAMILY, FAMILIES
from packforcing_core.checkpoint.recognition import origin_warnings, recognise
from tests.checkpoints import CAUSAL_METADATA

BARE = ["blocks.0.modulation"]
EMA = ["generator_ema.model.blocks.0.modulation"]
GENERATOR = ["generator.model.blocks.0.modulation"]

# file, keys, metadata -> family; the rows of the table of families and the ways users rename them
FILES = [
    ("self_forcing_dmd.pt", EMA, None, "self-forcing"),
    ("self_forcing_sid.pt", EMA, None, "self-forcing"),
    ("Wan2_1-T2V-1_3B-Self-Forcing-DMD.safetensors", BARE, None, "self-forcing"),
    ("chunkwise/causal_forcing.pt", GENERATOR, None, "causal-forcing-chunkwise"),
    ("framewise/causal_forcing.pt", EMA, None, "causal-forcing-framewise"),
    ("causal_forcing.pt", GENERATOR, None, "causal-forcing-chunkwise"),
    ("causal_forcing.pt", EMA, None, "causal-forcing-framewise"),
    ("framewise-2step.pt", EMA, None, "causal-forcing-2step"),
    ("framewise-1step.pt", EMA, None, "causal-forcing-1step"),
    ("chunkwise/longvideo.pt", EMA, None, "causal-forcing-long"),
    ("rolling_forcing_dmd.pt", EMA, None, "rolling-forcing"),
    ("longlive_base.pt", GENERATOR, None, "longlive"),
    ("base.pt", GENERATOR, None, "memflow"),
    ("rewardforcing.pt", BARE, None, "reward-forcing"),
    ("krea-realtime-video-14b.safetensors", BARE, None, "krea-realtime"),
    ("autoregressive_checkpoint/model.pt", GENERATOR, None, "causvid"),
    ("model.pt", GENERATOR, None, None),
    ("Wan21/Action2V/dmd/model.pt", GENERATOR, None, "minwm"),
    ("Wan21/Action2V/causal_cd/model.pt", EMA, None, "minwm"),
    ("renamed.pt", ["generator.model.blocks.0.self_attn.prope_o.weight"], None, "minwm"),
    ("raven_model.pt", BARE, None, "raven"),
    ("cmgrpo_raven_merge.pt", BARE, None, "raven"),
    ("one_forcing.pt", EMA, None, "one-forcing"),
    ("WaveForcing/model.safetensors", BARE, None, "wave-forcing"),
    ("wan_causal_dmd_v2v/model.pt", GENERATOR, None, "streamdiffusion-v2"),
    ("step002250_noema.pt", BARE, None, "livewan"),
    ("Self-Forcing-diffusers/transformer/diffusion_pytorch_model.safetensors", BARE, None, "self-forcing"),
    ("Wan2_1-T2V-14B_CausVid_fp8.safetensors", BARE, None, "causvid"),
    ("causal_forcing-framewise.safetensors", BARE, CAUSAL_METADATA, "comfyui-causal"),
    ("renamed.safetensors", BARE, CAUSAL_METADATA, "comfyui-causal"),
    ("model.pt", ["generator_ema.model.pack_compressor.net.0.weight"], None, "packforcing-partial"),
    ("packforcing_core/miniature/weights/wan.safetensors", BARE, None, "miniature"),
    ("packforcing-miniature.safetensors", BARE, CAUSAL_METADATA, "miniature"),
    ("wan2.1_t2v_1.3B_fp16.safetensors", BARE, None, "wan2.1-t2v"),
    ("wan.safetensors", BARE, None, None),
    ("renamed.safetensors", BARE, None, None),
    ("model.pt", [*EMA, *GENERATOR, "critic.model.blocks.0.modulation"], None, None),
]


@pytest.mark.parametrize(("file", "keys", "metadata", "name"), FILES)
@pytest.mark.parametrize("folder", ["", "/models/diffusion_models/", "C:\\models\\"])
def test_a_file_is_recognised_wherever_it_lies(file, keys, metadata, name, folder):
    separator = "\\" if "\\" in folder else "/"
    family = recognise(folder + file.replace("/", separator), metadata, keys).family
    assert (family.name if family else None) == name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Self_Forcing/causvid.pt", "causvid"),
        ("Self-Forcing/foo_longlive.pt", "longlive"),
        ("Causal-Forcing/foo_longlive.pt", "longlive"),
        ("Causal-Forcing/foo_long_live.pt", "longlive"),
        ("LongLive/self_forcing_dmd.pt", "self-forcing"),
        ("LongLive/unrelated_wan2.1_t2v.safetensors", "wan2.1-t2v"),
        ("wan2.1_t2v/self_forcing.pt", "self-forcing"),
        ("chunkwise/my_rolling_forcing.pt", "rolling-forcing"),
        # Where the file's name says nothing of its own, the folder counts.
        ("LongLive/renamed.pt", "longlive"),
        ("Self-Forcing/model.pt", "self-forcing"),
        ("Causal-Forcing/longvideo.pt", "causal-forcing-long"),
        ("chunkwise/longvideo.pt", "causal-forcing-long"),
        ("x/causal_forcing_chunkwise_long.pt", "causal-forcing-long"),
        ("MemFlow/base.pt", "memflow"),
        ("autoregressive_checkpoint/model.pt", "causvid"),
    ],
)
def test_a_files_own_name_beats_its_folders(file, name):
    assert recognise(f"/models/{file}", None, EMA).family.name == name


def test_every_family_can_be_recognised():
    assert {name for *_, name in FILES} - {None} == set(FAMILIES)


@pytest.mark.parametrize(
    ("file", "metadata", "warned"),
    [
        ("wan2.1_t2v_1.3B_fp16.safetensors", None, True),
        ("renamed.safetensors", None, True),
        ("renamed.safetensors", {"config": "not json"}, True),
        ("renamed.safetensors", {"config": '{"transformer": {"causal_ar": false}}'}, True),
        ("renamed.safetensors", CAUSAL_METADATA, False),
        ("wan2.1_t2v_1.3B_fp16.safetensors", CAUSAL_METADATA, False),
        ("self_forcing_dmd.pt", None, False),
        ("LongLive/unrelated_wan2.1_t2v.safetensors", None, True),
        ("wan2.1_t2v/self_forcing.pt", None, False),
        ("my_causal_wan.safetensors", None, False),
    ],
)
def test_only_a_file_that_nothing_calls_autoregressive_is_called_likely_bidirectional(file, metadata, warned):
    warnings = origin_warnings(recognise(file, metadata, BARE), file, metadata)
    assert any("likely a bidirectional" in warning for warning in warnings) == warned


def warnings_of(file, keys):
    return origin_warnings(recognise(file, None, keys), file, None)


def test_a_guess_by_a_generic_name_says_so():
    assert "base.pt is ambiguous: sampled as MemFlow" in warnings_of("base.pt", GENERATOR)[0]
    assert not any("is ambiguous" in warning for warning in warnings_of("memflow/base.pt", GENERATOR))


@pytest.mark.parametrize(
    ("file", "keys", "resembles"),
    [
        ("model.pt", GENERATOR, "CausVid or minWM or StreamDiffusionV2"),
        ("my_causal_wan.safetensors", BARE, "Self-Forcing's"),
        ("renamed.safetensors", BARE, "Wan2.1 T2V, so it is likely a bidirectional"),
    ],
)
def test_an_unknown_file_says_what_it_resembles_and_what_it_is_sampled_as(file, keys, resembles):
    (warning,) = warnings_of(file, keys)
    print(warning)
    assert f"resemble {resembles}" in warning
    assert f"sampled as {DEFAULT_FAMILY.title}: blocks of 3, steps 1000, 750, 500, 250, shift 5" in warning


def test_every_sign_that_counted_is_stated():
    assert recognise("x/self_forcing_dmd.pt", None, EMA).how == ("name: 'self_forcing_dmd' in the file's name",)
    assert recognise("LongLive/renamed.pt", None, EMA).how == ("name: 'longlive' in its folder's name",)
    assert "causal_ar" in recognise("x.safetensors", CAUSAL_METADATA, BARE).how[0]
    prope = "generator.model.blocks.0.self_attn.prope_o.weight"
    assert recognise("self_forcing.pt", None, [prope]).how == (f"keys: only minWM has {prope}",)
    assert recognise("x.pt", None, BARE).how[0].startswith("unknown")


def test_a_stage_of_minwm_that_is_not_distilled_says_so():
    (warning,) = warnings_of("Wan21/Action2V/ar_diffusion_tf/model.pt", GENERATOR)
    assert "stage ar_diffusion_tf, before distillation" in warning
    assert warnings_of("Wan21/Action2V/dmd/model.pt", GENERATOR) == []
