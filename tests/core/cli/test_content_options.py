"""Prompts over time and beginnings on the command line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from packforcing_core.video import SegmentedWriter, VideoFormat, read_frames
from tests.core.cli.test_render import render
from tests.films import picture

pytestmark = pytest.mark.integration

FAST = ("--timesteps", "1000", "--codec", "lossless")


def frames(path) -> np.ndarray:
    return np.stack(list(read_frames(path))).astype(int)


@pytest.fixture
def boat(tmp_path):
    """A picture and a film of 2 s at 24 FPS, larger than the render."""
    folder = tmp_path / "boat"
    folder.mkdir()
    Image.fromarray(picture(0, 1, 96, 64)[0]).save(folder / "boat.png")
    with SegmentedWriter(folder / "boat.mp4", 96, 64, VideoFormat(fps=24.0)) as writer:
        writer.write(picture(0, 48, 96, 64))
        writer.finish()
    return folder


def test_a_timeline_changes_the_film_at_the_block_that_is_named(files, umt5, tmp_path, capsys):
    words = ("--text-encoder", str(umt5), "--seconds", "3", *FAST)
    assert render(files, tmp_path / "one.mp4", "--prompt", "a red circle", *words, context="") == 0
    timeline = "a [0s] red circle [1.4s] blue square"
    assert render(files, tmp_path / "two.mp4", "--prompt", timeline, "--recache", *words, context="") == 0
    said = capsys.readouterr().out
    assert "prompt 2 at 1.4 s starts at 1.31 s, block 3: a blue square" in said
    apart = np.abs(frames(tmp_path / "one.mp4") - frames(tmp_path / "two.mp4")).max(axis=(1, 2, 3))
    print("first frame that differs:", int(np.argmax(apart > 0)))
    assert int(np.argmax(apart > 0)) == 21


def test_a_film_begins_with_a_picture(files, tmp_path, boat, capsys):
    start = ("--start-image", str(boat / "boat.png"))
    assert render(files, tmp_path / "film.mp4", "--seconds", "2", *start, *FAST) == 0
    assert render(files, tmp_path / "plain.mp4", "--seconds", "2", *FAST) == 0
    assert "the first is given (9 frames)" in capsys.readouterr().out
    begun, plain = frames(tmp_path / "film.mp4"), frames(tmp_path / "plain.mp4")
    assert begun.shape == plain.shape
    assert np.abs(begun - plain).mean() > 1


def test_a_film_goes_on_and_shows_what_is_new(files, tmp_path, boat, capsys):
    start = ("--continue-video", str(boat / "boat.mp4"), "--given-seconds", "1.5")
    assert render(files, tmp_path / "film.mp4", "--seconds", "1.5", *start, *FAST) == 0
    said = capsys.readouterr().out
    assert "after 2 blocks of the start (1.3 s) that the video does not show" in said
    assert "boat.mp4: Of the clip's 2.0 s the last 1.3 s are used." in said
    assert len(frames(tmp_path / "film.mp4")) == 24


def test_a_film_is_repainted(files, tmp_path, boat, capsys):
    start = ("--video-to-video", str(boat / "boat.mp4"), "--denoise", "0.5", "--timesteps", "1000,750,500,250")
    assert render(files, tmp_path / "film.mp4", "--seconds", "2", *start) == 0
    said = capsys.readouterr().out
    assert "the first 2 are regenerated from noise level 83% in 2 steps" in said
    assert "boat.mp4: Of the clip's 2.0 s the first 1.3 s are used." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "[5s] late"), "first prompt begins at 5 s"),
        (("--prompt", "[0s] a [0.1s] b"), "same block"),
        (("--prompt", "[0s] a [1s] b", "--blend-seconds", "-1"), "blend_seconds is -1"),
        (("--prompt", "a", "--start-image", "no.png"), "no.png"),
        (("--prompt", "a", "--video-to-video", "{boat}", "--denoise", "0"), "denoise is 0"),
        (("--prompt", "a", "--continue-video", "{boat}", "--given-seconds", "-1"), "given_seconds is -1.0"),
    ],
)
def test_what_cannot_be_is_refused(files, umt5, tmp_path, boat, capsys, arguments, message):
    words = [word.format(boat=boat / "boat.mp4") for word in arguments]
    assert render(files, tmp_path / "film.mp4", *words, "--text-encoder", str(umt5), context="") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "film.mp4").exists()
