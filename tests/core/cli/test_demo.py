from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from packforcing_core.cli.main import main
from packforcing_core.video import probe, read_frames, scan_film

SMALLEST = ("--width", "32", "--height", "32")


def test_two_seconds_of_demo_play(tmp_path, capsys):
    film = tmp_path / "demo [v2] of a long name that no console of eighty columns holds.mp4"
    assert main(["demo", "--seconds", "2", *SMALLEST, "--output", str(film)]) == 0
    said = capsys.readouterr().out
    assert "so the film is noise" in said
    assert "2 s at 16 FPS became 2.06 s: 33 frames in 3 blocks of 3" in said
    assert f"{film}: 33 frames, 2.06 s of video in" in said
    frames = list(read_frames(film))
    assert len(frames) == 33
    assert {frame.shape for frame in frames} == {(32, 32, 3)}


def test_the_prompt_and_the_seed_are_heard(tmp_path):
    films = []
    for choice in (("--seed", "0"), ("--seed", "1"), ("--prompt", "another"), ("--seed", "0")):
        films.append(tmp_path / f"{len(films)}.mp4")
        assert main(["demo", "--seconds", "0.1", *SMALLEST, *choice, "--output", str(films[-1])]) == 0
    seed_0, seed_1, other_prompt, again = (film.read_bytes() for film in films)
    assert seed_0 == again
    assert len({seed_0, seed_1, other_prompt}) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_leaves_a_growing_film_that_plays(tmp_path):
    growing = tmp_path / "demo.growing.mp4"
    arguments = ("demo", "--seconds", "600", *SMALLEST, "--segment-blocks", "1", "--output", str(tmp_path / "demo.mp4"))
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "packforcing_core.cli.main", *arguments],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        while process.poll() is None and not (growing.exists() and len(scan_film(growing).segments) >= 2):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
        os.killpg(process.pid, signal.SIGINT)  # The terminal interrupts encoders, too.
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert said == "interrupted\n"
    assert process.returncode == 130
    frames = len(list(read_frames(growing)))
    print(f"{frames} frames play")
    assert frames == probe(growing).frames
    assert frames >= 21
    assert (frames - 9) % 12 == 0  # Whole blocks of three latent frames.
    assert [path.name for path in tmp_path.iterdir()] == [growing.name]
