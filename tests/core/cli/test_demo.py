from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from packforcing_core.cli.main import main
from packforcing_core.video import probe, read_frames
from tests.films import closed_segments
from tests.survivor import OtherProcess

pytestmark = pytest.mark.integration

GROWING = "packforcing-*/film/*.growing.mp4"
BLOCK = ("--seconds", "0.1", "--zoom", "1")


def test_a_film_of_the_miniature_plays_enlarged(tmp_path, capsys):
    film = tmp_path / "demo [v2] of a long name that no console of eighty columns holds.mp4"
    assert main(["demo", "--seconds", "2", "--output", str(film)]) == 0
    said = capsys.readouterr().out
    assert "2 s at 16 FPS became 1.81 s: 29 frames in 2 blocks of 4" in said
    assert f"{film}: 29 frames, 1.81 s of video in" in said
    assert "warning" not in said
    frames = list(read_frames(film))
    assert len(frames) == 29
    assert {frame.shape for frame in frames} == {(256, 512, 3)}


def test_the_prompt_and_the_seed_are_heard(tmp_path):
    films = []
    for choice in (("--seed", "0"), ("--seed", "1"), ("--prompt", "the view pans over bars"), ("--seed", "0")):
        films.append(tmp_path / f"{len(films)}.mp4")
        assert main(["demo", *BLOCK, *choice, "--output", str(films[-1])]) == 0
    seed_0, seed_1, other_prompt, again = (film.read_bytes() for film in films)
    assert seed_0 == again
    assert len({seed_0, seed_1, other_prompt}) == 3


def test_unknown_words_are_named_and_the_known_ones_listed(tmp_path, capsys):
    prompt = "a (red:1.2) elephant bounces on a mauve background"
    assert main(["demo", *BLOCK, "--prompt", prompt, "--output", str(tmp_path / "film.mp4")]) == 0
    said = capsys.readouterr().out
    print(said)
    assert "the miniature does not know these words: elephant, mauve" in said
    assert "Warning: weights such as (red:1.2) have no effect in the miniature." in said
    assert all(word in said for word in ("circle", "purple", "bounces"))


def test_prompts_come_from_a_file_and_the_name_of_a_file_is_no_prompt(tmp_path, capsys):
    file = tmp_path / "story.txt"
    file.write_text("\ufeff[0s] a red circle bounces\n[0.5s] a green triangle bounces\n", encoding="utf-8")
    choice = ("demo", "--seconds", "1", "--zoom", "1", "--output", str(tmp_path / "film.mp4"))
    assert main([*choice, "--prompt-file", str(file)]) == 0
    said = capsys.readouterr().out
    print(said)
    assert "prompt 2 at 0.5 s" in said
    assert "does not know" not in said
    for wrong, message in (
        (("--prompt", "missing.txt"), "for the text in a file: --prompt-file missing.txt"),
        (("--prompt-file", "missing.txt"), "missing.txt cannot be read"),
        (("--prompt-file", str(file), "--prompt", "a circle"), "not allowed with"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*choice, *wrong])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_an_empty_prompt_is_warned_about_as_on_the_node(tmp_path, capsys):
    assert main(["demo", *BLOCK, "--prompt", " ", "--output", str(tmp_path / "film.mp4")]) == 0
    said = capsys.readouterr().out
    print(said)
    assert "Warning: this prompt is empty, so the video may show anything, or nothing.\n" in said
    assert "does not know" not in said


def test_prompts_over_time_and_another_memory(tmp_path, capsys):
    prompt = "[0s] a red circle bounces on a dark background [1s] a red circle bounces on a teal background"
    choice = ("--seconds", "2", "--policy", "window", "--window-frames", "12")
    assert main(["demo", *BLOCK, *choice, "--prompt", prompt, "--output", str(tmp_path / "film.mp4")]) == 0
    said = capsys.readouterr().out
    print(said)
    assert "teal" in said
    assert "29 frames" in said


def heed_interrupts() -> None:
    """In the child: a shell starts what runs in its background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_leaves_a_growing_film_that_plays(tmp_path):
    choice = ("--seconds", "600", "--zoom", "1", "--blocks-per-segment", "1")
    arguments = ("demo", *choice, "--output", str(tmp_path / "demo.mp4"))
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "packforcing_core.cli.main", *arguments],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    try:
        while process.poll() is None and sum(map(closed_segments, tmp_path.glob(GROWING))) < 2:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
        os.killpg(process.pid, signal.SIGINT)  # The terminal interrupts encoders, too.
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
    print(said)
    # Before it, libraries may have said what they lack in this processor.
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert process.returncode == 130
    (growing,) = tmp_path.glob(GROWING)
    frames = len(list(read_frames(growing)))
    print(f"{frames} frames play")
    assert frames == probe(growing).frames
    assert frames >= 29
    assert (frames - 13) % 16 == 0  # Whole blocks of four latent frames.
    assert [path.name for path in tmp_path.iterdir()] == [growing.parents[1].name]


def run_command(send: Callable[[str], None], command: list[str]) -> None:
    """Work for another process: the command line."""
    main(command)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_demo_that_was_killed_resumes_when_it_is_run_again(tmp_path, capsys):
    command = ["demo", "--seconds", "8", "--zoom", "1", "--output", str(tmp_path / "demo.mp4")]
    with OtherProcess(run_command, command) as process:  # Leaving it kills.
        while process.alive() and len(list(tmp_path.glob("packforcing-*/blocks/*.safetensors"))) < 2:
            time.sleep(0.01)
    assert not (tmp_path / "demo.mp4").exists()
    assert main(command) == 0
    said = capsys.readouterr().out
    print(said)
    assert " of 8 blocks are finished already" in said
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]
