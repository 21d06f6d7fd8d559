"""`packforcing render` killed and run again, and its modes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packforcing_core.cli.main import main
from packforcing_core.video import read_frames
from tests.core.cli.test_render import render
from tests.survivor import OtherProcess

pytestmark = pytest.mark.integration


def frames(film: Path) -> np.ndarray:
    return np.stack(list(read_frames(film)))


def run_command(send: Callable[[str], None], command: list[str]) -> None:
    """Work for another process: the command line."""
    main(command)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_the_same_command_after_kill_9_goes_on_and_gives_the_same_file(files, tmp_path, capsys):
    memory = ("--policy", "packforcing", "--sink-frames", "3", "--recent-frames", "3", "--top-k-blocks", "2")
    # 27 blocks of some 50 ms: when three are seen, much is left to be killed in.
    arguments = ("--seconds", "20", *memory)
    killed, unbroken = tmp_path / "killed.mp4", tmp_path / "other" / "film.mp4"
    given = [word for name, file in FILES.items() for word in (f"--{name}", str(files / file))]
    command = ["render", *given, *SIZE, "--output", str(killed), *arguments]
    with OtherProcess(run_command, command) as process:  # Leaving it kills.
        while process.alive() and len(list(tmp_path.glob("packforcing-*/blocks/*.safetensors"))) < 3:
            time.sleep(0.01)
    assert not killed.exists()
    assert main(command) == 0
    said = capsys.readouterr().out
    print(said)
    assert " of 27 blocks are finished already" in said
    assert render(files, unbroken, *arguments) == 0
    assert killed.read_bytes() == unbroken.read_bytes()
    assert [path.name for path in unbroken.parent.iterdir()] == ["film.mp4"]


FILES = {"checkpoint": "self_forcing_dmd.pt", "vae": "vae.safetensors", "context": "context.safetensors"}
SIZE = ("--width", "64", "--height", "32", "--device", "cpu", "--blocks-per-segment", "1")


def test_a_folder_is_extended_and_retaken(files, tmp_path, capsys):
    folder = ("--folder", str(tmp_path / "my render"), "--codec", "lossless")
    short, long, retaken = (tmp_path / f"{name}.mp4" for name in ("short", "long", "retaken"))
    assert render(files, short, *folder, "--seconds", "1.3") == 0
    assert render(files, long, *folder, "--seconds", "3", "--render-mode", "extend") == 0
    retake = ("--render-mode", "retake", "--retake-from", "2", "--seed", "5")
    assert render(files, retaken, *folder, "--seconds", "3", *retake) == 0
    a, b, c = frames(short), frames(long), frames(retaken)
    assert np.array_equal(a, b[: len(a)])
    changed = np.abs(b.astype(int) - c.astype(int)).max(axis=(1, 2, 3))
    first = int(np.argmax(changed > 0))
    print(f"{len(a)}, {len(b)} frames; first changed frame {first}")
    assert first == 21
    capsys.readouterr()
    assert render(files, tmp_path / "x.mp4", *folder, "--seconds", "3") == 1
    assert "seed: the render has 5, now 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--render-mode", "extend"), "needs --folder"),
        (("--render-mode", "retake", "--folder", "FOLDER", "--retake-from", "1"), "no render"),
        (("--retake-from", "-5"), "retake_from is -5"),
    ],
)
def test_a_mode_that_cannot_be_is_refused(files, tmp_path, capsys, arguments, message):
    arguments = [str(tmp_path / "folder") if word == "FOLDER" else word for word in arguments]
    assert render(files, tmp_path / "film.mp4", *arguments) == 1
    assert message in capsys.readouterr().err
