"""`packforcing plan` says what is then allocated."""

from __future__ import annotations

import json
import re

import pytest

from packforcing_core.cli.main import main
from packforcing_core.cli.plan import ROWS
from packforcing_core.geometry import size_text
from packforcing_core.vae.decode_bytes import HELD_BY_CALLS
from packforcing_core.vae.wan_vae import TOGETHER


def plan(capsys, *arguments: str) -> dict:
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_window_of_21_frames_at_832x480(capsys):
    made = plan(
        capsys,
        *("--policy", "window", "--window-frames", "21", "--frames-per-block", "3"),
        *("--width", "832", "--height", "480", "--seconds", "120"),
    )
    per_token = 2 * 1536 * 2 * 30
    assert made["tokens_per_frame"] == 1560
    assert (made["blocks"], made["latent_frames"], made["pixel_frames"]) == (160, 480, 1917)
    assert (made["sink_tokens"], made["mid_tokens"], made["recent_tokens"]) == (0, 0, 18 * 1560)
    assert made["current_tokens"] == 3 * 1560
    assert made["attended_tokens"] == 21 * 1560
    assert made["cache_bytes"] == 18 * 1560 * per_token
    assert made["buffer_bytes"] == 21 * 1560 * per_token
    assert made["peak_bytes"] > made["buffer_bytes"] + made["weights_bytes"]


@pytest.mark.parametrize(("policy", "told"), [((), "window (what the preset"), (("--policy", "packforcing"), "packf")])
def test_the_table_names_the_policy_and_what_each_size_is_of(capsys, policy: tuple[str, ...], told: str):
    made = plan(capsys, *policy)
    assert main(["plan", *policy]) == 0
    said = capsys.readouterr().out
    print(said)
    assert f"KV cache policy: {told}" in said
    assert told.startswith(made["policy"][:5])
    rows = {"past frames in the KV cache": "cache_bytes", "whole KV cache, in VRAM": "buffer_bytes"}
    rows |= {"bank of compressed blocks": "bank_bytes", "part of the bank in system RAM": "host_bytes"}
    for row, field in rows.items():
        assert re.search(rf"^{row} +{size_text(made[field])}$", said, re.MULTILINE)
    # Every label is of a field, and no field has lost its row.
    assert set(ROWS) <= set(made)
    assert len([line for line in said.splitlines() if re.search(r"  \S+( [kMG]B)?$", line)]) == len(made) - 2


def test_full_history_of_two_minutes_is_138_gb(capsys):
    made = plan(capsys, "--policy", "full", "--frames-per-block", "4", "--seconds", "120")
    assert made["buffer_bytes"] == 748_800 * 184_320
    print(f"{made['buffer_bytes'] / 1e9:.1f} GB")


def test_thirty_seconds_in_blocks_of_four_are_477_frames(capsys):
    assert plan(capsys, "--seconds", "30", "--frames-per-block", "4")["pixel_frames"] == 477


@pytest.mark.parametrize(("asked", "frames"), [(1, 13), (81, 77), (477, 477), (480, 477), (490, 493)])
@pytest.mark.parametrize("fps", [8, 16, 23.976])
def test_a_length_in_frames_becomes_whole_blocks_whatever_the_frame_rate(capsys, asked: int, frames: int, fps: float):
    length = "--seconds", "30", "--frames", str(asked), "--fps", str(fps)
    found = plan(capsys, *length, "--frames-per-block", "4")["pixel_frames"]
    print(found)
    assert found == frames


def test_a_card_with_room_decodes_four_frames_at_once(capsys):
    """From 11.04 GB on at 832x480: twelve more frames of 76.7 MB are at most a twelfth of that."""
    frame = 96 * 832 * 480 * 2
    small, large = (plan(capsys, "--vram", vram) for vram in ("11", "11.1"))
    assert (small["vram_bytes"], large["vram_bytes"]) == (11_000_000_000, 11_100_000_000)
    assert large["peak_bytes"] - small["peak_bytes"] == 12 * frame - HELD_BY_CALLS.get(1, 0) * frame + (
        HELD_BY_CALLS.get(TOGETHER, 0) * frame
    )
    assert plan(capsys)["peak_bytes"] == large["peak_bytes"]  # A card of 16 GB.
    for vram, said in (("11", "one frame at a time"), ("24", "4 frames at once")):
        assert main(["plan", "--vram", vram]) == 0
        assert f"Planned for a card with {vram} GB, which decodes {said} (--vram)." in capsys.readouterr().out


def test_a_realigned_window_counts_its_unrotated_keys(capsys):
    made = plan(capsys, "--policy", "sink_window", "--window-frames", "12", "--sink-frames", "3")
    frame = 1560 * 184_320
    assert made["cache_bytes"] == 9 * frame
    assert made["buffer_bytes"] == 12 * frame + 6 * frame // 2


def test_a_plan_says_whether_the_card_is_large_enough(capsys):
    for vram, told in (
        ("16", "It fits: about"),
        ("8", "It does not fit: about 11.83 GB are needed, the card has 8.00 GB"),
    ):
        assert main(["plan", "--vram", vram]) == 0
        said = capsys.readouterr().out.splitlines()[-1]
        print(said)
        assert said.startswith(told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", "840"), "multiple of 16"),
        (("--seconds", "0"), "seconds is 0"),
        (("--frames", "0"), "frames is 0"),
        (("--seconds", "nan"), "seconds is nan"),
        (("--fps", "-1"), "fps is -1"),
        (("--vram", "0"), "--vram is 0"),
        (("--vram", "nan"), "--vram is nan"),
        (("--policy", "sink_window", "--window-frames", "4", "--sink-frames", "3"), "at least 6"),
        (("--policy", "window", "--sink-frames", "3"), "no knob sink_frames"),
        (("--model", "nothing.safetensors"), "nothing.safetensors"),
        (("--frames-per-block", "0"), "frames_per_block"),
    ],
)
def test_bad_input_is_refused_with_a_reason(capsys, arguments, message):
    assert main(["plan", *arguments]) == 1
    assert message in capsys.readouterr().err
