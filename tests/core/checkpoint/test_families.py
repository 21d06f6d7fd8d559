from __future__ import annotations

import math

import pytest

from packforcing_core.checkpoint.families import (
    DEFAULT_FAMILY,
    FAMILIES,
    FOUR_STEPS,
    by_name,
    choice_warnings,
    origin_warnings,
    recognise,
    with_overrides,
)
from packforcing_core.errors import PackForcingError
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
    ("model.pt", GENERATOR, None, "causvid"),
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
    family = recognise(folder + file.replace("/", separator), metadata, keys)
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
    assert recognise(f"/models/{file}", None, EMA).name == name


def test_every_family_can_be_recognised():
    assert {name for *_, name in FILES} - {None} == set(FAMILIES)


def facts(name):
    family = by_name(name)
    return family.frames_per_block, family.denoising_steps, family.window_frames, family.sink_frames


def test_the_presets_are_those_of_the_projects():
    five = (1000.0, 800.0, 600.0, 400.0, 200.0)
    assert {name: facts(name) for name in FAMILIES} == {
        "self-forcing": (3, FOUR_STEPS, 21, 0),
        "causal-forcing-chunkwise": (3, FOUR_STEPS, 21, 0),
        "causal-forcing-framewise": (1, FOUR_STEPS, 21, 0),
        "causal-forcing-2step": (1, (1000.0, 500.0), 21, 0),
        "causal-forcing-1step": (1, (1000.0,), 21, 0),
        "causal-forcing-long": (3, FOUR_STEPS, 24, 3),
        "rolling-forcing": (3, five, 24, 3),
        "longlive": (3, FOUR_STEPS, 12, 3),
        "memflow": (3, FOUR_STEPS, 12, 3),
        "reward-forcing": (3, FOUR_STEPS, 9, 3),
        "krea-realtime": (3, FOUR_STEPS, 6, 0),
        "causvid": (3, (1000.0, 757.0, 522.0), None, 0),
        "comfyui-causal": (1, FOUR_STEPS, None, 0),
        "packforcing-partial": (3, FOUR_STEPS, 21, 0),
        "miniature": (4, FOUR_STEPS, 20, 0),
        "wan2.1-t2v": (3, FOUR_STEPS, None, 0),
    }
    first = {name for name, family in FAMILIES.items() if family.first_block_steps == FOUR_STEPS}
    assert first == {"causal-forcing-2step", "causal-forcing-1step"}
    assert {name for name, family in FAMILIES.items() if not family.warp or family.shift != 5} == {"causvid"}
    assert (by_name("causvid").warp, by_name("causvid").shift) == (False, 8.0)
    rolling = {name for name, family in FAMILIES.items() if family.rollout == "rolling"}
    assert rolling == {"causal-forcing-long", "rolling-forcing"}
    assert {name: family.attended_frames for name, family in FAMILIES.items() if family.attended_frames} == {
        "causal-forcing-long": 21,
        "rolling-forcing": 21,
    }
    assert {family.context_noise for family in FAMILIES.values()} == {0.0}


def test_the_users_choice_goes_on_top_and_none_changes_nothing():
    family = by_name("longlive")
    assert with_overrides(family, frames_per_block=None, shift=None) == family
    chosen = with_overrides(
        family, frames_per_block=4, denoising_steps=[1000, 500], shift=8, window_frames=21, sink_frames=0
    )
    assert (chosen.frames_per_block, chosen.denoising_steps, chosen.shift) == (4, (1000.0, 500.0), 8)
    assert (chosen.window_frames, chosen.sink_frames, chosen.name) == (21, 0, "longlive")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"frames_per_block": 0}, "frames_per_block 0"),
        ({"denoising_steps": (500, 1000)}, "falling"),
        ({"denoising_steps": ()}, "falling"),
        ({"denoising_steps": (1000, 0)}, "falling"),
        ({"first_block_steps": (2000,)}, "first_block_steps"),
        ({"denoising_steps": (math.nan,)}, r"denoising_steps \[nan\].*from 1000 to 1"),
        ({"denoising_steps": (1000, math.nan, 500)}, r"denoising_steps \[1000.0, nan, 500.0\]"),
        ({"denoising_steps": (1000, 0.5)}, "from 1000 to 1"),
        ({"first_block_steps": (1000, math.nan)}, "first_block_steps"),
        ({"shift": 0.0}, "shift 0"),
        ({"shift": math.nan}, "shift nan; expected a finite number above 0"),
        ({"shift": math.inf}, "shift inf"),
        ({"context_noise": 1000.0}, "context_noise 1000"),
        ({"sink_frames": 12}, "12 sink frames in a window of 12"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(choice, message):
    with pytest.raises(PackForcingError, match=message):
        with_overrides(by_name("longlive"), **choice)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(PackForcingError, match=r"'selfforcing'.*self-forcing.*causvid"):
        by_name("selfforcing")


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


def test_a_guess_by_a_generic_name_says_so():
    assert "model.pt says little: taken for CausVid" in origin_warnings(by_name("causvid"), "model.pt", None)[0]
    assert not any(
        "says little" in warning for warning in origin_warnings(by_name("causvid"), "causvid/model.pt", None)
    )
    assert DEFAULT_FAMILY.title in origin_warnings(None, "my_causal_wan.safetensors", None)[0]


def test_another_block_size_than_the_trained_one_is_warned_about():
    trained = by_name("self-forcing")
    assert choice_warnings(trained, trained) == []
    assert choice_warnings(None, trained) == []
    (warning,) = choice_warnings(trained, with_overrides(trained, frames_per_block=4))
    assert "blocks of 3" in warning
    assert "4 are chosen" in warning
