from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry
from packforcing_core.text.marks import unmarked
from packforcing_core.text.script import Change, Cue, Script
from packforcing_core.text.timeline import Snapped, describe, parse_time, parse_timeline, snap

GEOMETRY = VideoGeometry(832, 480, 16.0, 3, 40)


def told(text: str, prefix: str = "") -> list[tuple[float, str]]:
    return [(prompt.seconds, prompt.prompt) for prompt in parse_timeline(text, prefix)]


def test_a_text_without_marks_is_one_prompt():
    assert told("a boat, [masterpiece], (red:1.2)") == [(0.0, "a boat, [masterpiece], (red:1.2)")]
    assert told("drifts", prefix="a boat") == [(0.0, "a boat drifts")]
    assert told("") == [(0.0, "")]


def test_prompts_begin_with_the_prefix_and_with_what_stands_before_the_first_mark():
    text = "Watercolour.\n[0s] It drifts.\n[12.5s] Rain [heavy].\n[1m05s] Sun."
    assert told(text, "A paper boat.") == [
        (0.0, "A paper boat. Watercolour. It drifts."),
        (12.5, "A paper boat. Watercolour. Rain [heavy]."),
        (65.0, "A paper boat. Watercolour. Sun."),
    ]


TWO = [(0.0, "a sea"), (5.0, "a storm")]


@pytest.mark.parametrize(
    "text",
    [
        "[0s] a sea [5s] a storm",
        "[0 s] a sea [5 sec] a storm",
        "\u30100s\u3011a sea \u30105s\u3011a storm",
        "\uff3b0s\uff3da sea \uff3b5s\uff3d a storm",
        "\u3010\uff10\u79d2\u3011a sea\n\u3010\uff15\u79d2\u3011a storm",
        "\uff080s\uff09a sea\uff085s\uff09a storm",
        "(0s) a sea (5s) a storm",
        "(0:00) a sea (0:05) a storm",
        "[0:00:00] a sea [0:00:05] a storm",
        "0:00 a sea\n0:05 a storm",
        "0s: a sea\n5s: a storm",
        "0s - a sea\n5s - a storm\n",
        "  00:00 | a sea\n\n  00:05 | a storm",
        "0\uff1a00 a sea\n0\uff1a05 a storm",
        '{"0s": "a sea", "5s": "a storm"}',
        '"0": "a sea",\n"5": "a storm",',
        "{\u201c0:00\u201d: \u201ca sea\u201d, \u201c0:05\u201d: \u201ca storm\u201d}",
    ],
)
def test_times_in_the_punctuation_that_people_type(text):
    assert told(text) == TWO
    assert told(text, "Ink.") == [(seconds, f"Ink. {prompt}") for seconds, prompt in TWO]


def test_what_stands_before_timed_lines_begins_every_prompt():
    assert told("Watercolour.\n0:00 a sea\n0:05 a storm") == [
        (0.0, "Watercolour. a sea"),
        (5.0, "Watercolour. a storm"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "10s timelapse of a flower",
        "12:30 in the afternoon, a clock tower",
        "a photo, cinematic (16:9), (waves:1.3), (2 people)",
        "at 5s of exposure: stars",
        "1. a list\n2. of things",
        "ratio 2.39:1, f/1.8, 35 mm; 1920x1080",
        '"quoted words": a title card',
        "a sign that says (open 24h)",
    ],
)
def test_numbers_and_brackets_of_plain_prompts_are_no_times(text):
    assert told(text) == [(0.0, text)]


def test_a_line_that_begins_with_a_time_and_is_read_as_a_prompt_is_warned_about():
    (warning,) = unmarked("on a dark background\n5s on a teal background")
    print(warning)
    assert "the line that begins with '5s' is read as a part of the prompt" in warning
    assert "write [5s], and [0s] before the first prompt" in warning
    plain = ("a sea at 5s", "10s timelapse of a flower", "a\n5star hotel", "")
    for quiet in (*plain, "[0s] a sea [5s] a storm", "0:05 a sea\n0:10 a storm"):
        assert unmarked(quiet) == ()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0: a sea\n80: a storm", "0: a sea"),
        ("frame 0: a sea\nframe 80: a storm", "frame 0: a sea"),
        ("<0s> a sea <5s> a storm", "<0s> a sea <5s> a storm"),
        ("{0s} a sea {5s} a storm", "{0s} a sea {5s} a storm"),
        ("a sea, 5s: a storm", "a sea, 5s: a storm"),
        ("0s: a sea, 5s: a storm", "0s: a sea, 5s: a storm"),
        ("0s a sea, 5s a storm", "0s a sea, 5s a storm"),
        ("0s-5s: a sea\n5s-9s: a storm", "0s-5s: a sea"),
        ("0:00 - 0:05 a sea\n0:05 - 0:10 a storm", "0:00 - 0:05 a sea"),
        ("[0s] a sea (5s) a storm", "[0s] a sea (5s) a storm"),
        ("[0s] a sea\n5s: a storm\n9s: rain", "5s: a storm"),
        ('{"0s": "a sea", "5s": 3}', '{"0s": "a sea", "5s": 3}'),
        ("{'0s': 'a sea'}", "{'0s': 'a sea'}"),
        ('{"0s": "a sea" "5s": "a storm"}', '{"0s": "a sea" "5s": "a storm"}'),
    ],
)
def test_what_looks_like_a_timeline_is_refused_with_its_line(text, line):
    with pytest.raises(PackForcingError) as refused:
        parse_timeline(text)
    print(refused.value)
    assert repr(line) in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1:00:05", 3605),
        ("\uff11\uff12.\uff15\uff53", 12.5),
        ("1\u520605\u79d2", 65),
        ("0s", 0),
        ("12.5s", 12.5),
        (".5 s", 0.5),
        ("1m05s", 65),
        ("1m", 60),
        ("2 min 3.25 sec", 123.25),
        ("1:05", 65),
    ],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[5s] a", "first prompt begins at 5 s"),
        ("[0s] a [5s] b [3s] c", "3 s follows one at 5 s"),
        ("[0s] a [5s] b [5s] c", "5 s follows one at 5 s"),
        ("[0s] a [-5s] b", r"Got the time \[-5s\]"),
        ("[0s] a [1,5s] b", r"Got the time \[1,5s\]"),
        ("[0s] a [5] b", r"Got the time \[5\]"),
        ("[0s] a [5x] b", r"Got the time \[5x\]"),
        ("[0s] a [5s return] b", r"Got the time \[5s return\]; .*\[20s cut\] or \[20s flush\]"),
        ("[0s] a [1:75] b", r"Got the time \[1:75\]"),
        ("[0s] a\n[xs] b", r"A line begins with \[xs\]"),
        ("[0s] a\n[nan s] b", r"A line begins with \[nan s\]"),
        ("[0s] a [5s] ", "prompt at 5 s is empty"),
        ("[0s] [5s] b", "prompt at 0 s is empty"),
        ("[0s] a\n[5s b", r"only one of its two brackets, in the line '\[5s b'"),
        ("[0s] a [1:05 b", "only one of its two brackets"),
        ("[5s a", "only one of its two brackets"),
        ("[0s] a\n 5s] b", r"only one of its two brackets, in the line '5s\] b'"),
        ("[0s] a [9999999s] b", "begins at 1e.07 s; expected a time from 0 to"),
        ("x" * 1_000_000, "1,000,000 characters; expected at most 20,000"),
        ("[0s] a [1s] " + "x" * 1_000_000, "prompt at 1 s has 1,000,000"),
        ("[" * 3_000_000, "3,000,000 characters"),
        ("".join(f"[{second}s] a " for second in range(1001)), "1,001 timed prompts"),
    ],
    ids=lambda value: value[:24],
)
def test_a_timeline_that_cannot_be_meant_is_refused_in_words(text, message):
    started = time.process_time()
    with pytest.raises(PackForcingError, match=message) as refused:
        parse_timeline(text)
    took = time.process_time() - started
    print(f"{took:.3f} s: {str(refused.value)[:200]}")
    assert took < 30, "seconds of the processor; were it quadratic, millions of characters would take hours"
    assert len(str(refused.value)) < 400


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="[](){}<>0123456789.:sm -+e\nax,|\"'\u3010\u3011\uff15\uff53\u79d2", max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        prompts = parse_timeline(text)
    except PackForcingError:
        return
    assert prompts[0].seconds == 0
    assert len(prompts) == 1 or all(prompt.prompt for prompt in prompts)


def script_of(snapped: Sequence[Snapped], changes: Sequence[Change], blend: int = 0) -> Script:
    """A script without texts."""
    pairs = zip(snapped, changes, strict=True)
    return Script(tuple(Cue(moment.block, torch.zeros(1, 1, 1), blend, change=change) for moment, change in pairs))


def test_times_go_to_the_block_whose_first_frame_is_nearest():
    """Blocks of 3 latent frames at 16 FPS begin at frames 0, 9, 21, 33 ...: 0, 0.5625, 1.3125, 2.0625 s."""
    snapped = snap([0.0, 0.6, 1.4, 12.5, 29.0], GEOMETRY)
    changes: list[Change] = ["", "cut", "flush", "", ""]
    told = describe(snapped, GEOMETRY, script_of(snapped, changes, blend=2), ["a", "b", "c", "d" * 100, "e"])
    print(*told, sep="\n")
    assert told[1] == "prompt 2 at 0.6 s starts at 0.56 s, block 2 (hard cut): b"
    assert told[2].endswith("block 3 (flush): c")
    assert "block 18, blended over 2 blocks (1.5 s): ddd" in told[3]
    assert [(moment.block, moment.seconds) for moment in snapped] == [
        (0, 0.0), (1, 0.5625), (2, 1.3125), (17, 12.5625), (39, 29.0625),
    ]  # fmt: skip
    for moment in snapped:
        starts = [0.0, *((12 * block - 3) / 16 for block in range(1, 60))]
        assert moment.seconds == min(starts, key=lambda start: abs(start - moment.wished))


def test_behind_blocks_that_are_left_out_the_film_begins_at_zero():
    snapped = snap([0.0, 0.8, 12.0], GEOMETRY, left_out_blocks=4)
    assert [(moment.block, moment.seconds) for moment in snapped] == [(0, 0.0), (5, 0.75), (20, 12.0)]


def test_snapping_does_not_depend_on_the_length():
    longer = VideoGeometry(832, 480, 16.0, 3, 400)
    assert snap([0.0, 7.0, 100.0], GEOMETRY) == snap([0.0, 7.0, 100.0], longer)


def test_a_prompt_after_the_end_is_warned_about_as_never_shown():
    end = GEOMETRY.seconds
    late = snap([0.0, end, 100.0], GEOMETRY)
    last, far = describe(late, GEOMETRY, script_of(late, ["", "", ""], blend=2), ["a", "b", "c"])[1:]
    print(last, far, sep="\n")
    assert last == (
        f"Warning: prompt 2 at {end:g} s is never shown: it would start at {end:.2f} s, and the video ends at "
        f"{end:.2f} s: b"
    )
    assert far.startswith("Warning: prompt 3 at 100 s is never shown: it would start at 100.")
    assert far.endswith(f"and the video ends at {end:.2f} s: c")
    assert not describe(snap([0.0, end - 1], GEOMETRY), GEOMETRY, script_of(late[:2], ["", ""]))[1].startswith("Warn")
    # Behind a start that the video does not show, it ends as much earlier.
    left_out = snap([0.0, 100.0], GEOMETRY, left_out_blocks=4)
    assert f"the video ends at {end - 45 / 16:.2f} s" in describe(left_out, GEOMETRY, script_of(left_out, ["", ""]))[1]


@pytest.mark.parametrize("times", [[0.0, 0.2], [0.0, 5.0, 5.3]])
def test_two_prompts_on_one_block_are_refused(times):
    with pytest.raises(PackForcingError, match=r"same block.*0.75 s apart"):
        snap(times, GEOMETRY)


@pytest.mark.parametrize("text", ["[0s] a [20s cut] b [25s flush] c", '{"0s": "a", "20s CUT": "b", "25s flush": "c"}'])
def test_cuts_and_flushes_stand_behind_the_time(text):
    made = [(prompt.seconds, prompt.prompt, prompt.change) for prompt in parse_timeline(text)]
    assert made == [(0, "a", ""), (20, "b", "cut"), (25, "c", "flush")]


def test_the_first_prompt_cuts_nothing_and_other_words_are_no_changes():
    with pytest.raises(PackForcingError, match="first prompt has a cut"):
        parse_timeline("[0s cut] a [5s] b")
    with pytest.raises(PackForcingError, match="20s fade"):
        parse_timeline("[0s] a [20s fade] b")
