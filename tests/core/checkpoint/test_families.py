from __future__ import annotations

import math

import pytest

from packforcing_core.cache.config import PackForcing
from packforcing_core.checkpoint.families import (
    FAMILIES,
    FOUR_STEPS,
    any_size,
    by_name,
    choice_warnings,
    with_overrides,
)
from packforcing_core.errors import PackForcingError
from packforcing_core.miniature.load import SIZE
from packforcing_core.recipe.settings import Settings


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
        "minwm": (4, FOUR_STEPS, 20, 0),
        "raven": (3, FOUR_STEPS, 21, 0),
        "one-forcing": (1, (1000.0,), 21, 0),
        "wave-forcing": (3, five, 24, 3),
        "streamdiffusion-v2": (1, (700.0, 500.0, 400.0, 200.0), 6, 3),
        "livewan": (3, FOUR_STEPS, 21, 0),
        "comfyui-causal": (1, FOUR_STEPS, None, 0),
        "packforcing-partial": (3, FOUR_STEPS, 21, 0),
        "miniature": (4, FOUR_STEPS, 20, 0),
        "wan2.1-t2v": (3, FOUR_STEPS, None, 0),
    }
    first = {name for name, family in FAMILIES.items() if family.first_block_steps == FOUR_STEPS}
    assert first == {"causal-forcing-2step", "causal-forcing-1step"}
    assert {name for name, family in FAMILIES.items() if not family.warp or family.shift != 5} == {
        "causvid",
        "streamdiffusion-v2",
    }
    assert (by_name("causvid").warp, by_name("causvid").shift) == (False, 8.0)
    rolling = {name for name, family in FAMILIES.items() if family.rollout == "rolling"}
    assert rolling == {"causal-forcing-long", "rolling-forcing", "wave-forcing"}
    assert {name: family.attended_frames for name, family in FAMILIES.items() if family.attended_frames} == {
        "causal-forcing-long": 21,
        "rolling-forcing": 21,
        "wave-forcing": 21,
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


def test_another_block_size_than_the_trained_one_is_warned_about():
    trained = by_name("self-forcing")
    assert choice_warnings(trained, trained, (64, 128)) == []
    assert choice_warnings(None, trained, (64, 128)) == []
    (warning,) = choice_warnings(trained, with_overrides(trained, frames_per_block=4), (832, 480))
    assert "blocks of 3" in warning
    assert "frames_per_block is 4" in warning


def test_blocks_of_another_length_are_named_before_a_memory_that_would_fit_the_model():
    trained, memory = by_name("miniature"), PackForcing(sink_frames=8)
    with pytest.raises(PackForcingError) as refused:
        Settings(policy=memory, frames_per_block=7).recipe(trained)
    print(refused.value)
    own, _, memorys = str(refused.value).partition(" The KV cache does not fit blocks of 7: ")
    assert own.startswith("frames_per_block is 7, but the PackForcing miniature was trained with blocks of 4")
    assert own.endswith("Set it to 4, or on the node to 0 (the model's own).")
    assert "sink_frames is 8, which is not whole blocks of 7" in memorys
    for unrelated in (PackForcing(sink_frames=6), PackForcing(recent_frames=0)):
        with pytest.raises(PackForcingError, match=r"^Policy 'packforcing': "):
            Settings(policy=unrelated, frames_per_block=7).recipe(trained)
    with pytest.raises(PackForcingError, match=r"^Policy 'packforcing': "):
        Settings(policy=memory, frames_per_block=7).recipe(None)
    assert Settings(policy=memory, frames_per_block=2).recipe(trained).geometry.frames_per_block == 2


def test_the_miniature_is_said_to_have_one_size():
    trained = by_name("miniature")
    assert trained.only_size == SIZE
    assert choice_warnings(trained, trained, SIZE) == []
    (warning,) = choice_warnings(trained, trained, SIZE[::-1])
    assert "trained at 128x64 pixels only, but the size is 64x128" in warning
    assert "Set width to 128 and height to 64" in warning


def test_only_the_miniature_has_one_size():
    assert [name for name, family in FAMILIES.items() if not any_size(family)] == ["miniature"]
    assert any_size(None)
