"""`packforcing train compressor --checkpoint`: from a file to a compressor, also when killed; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from packforcing_core.cli.main import main
from packforcing_core.compressor.weights import TOLD_KEYS, load_compressor
from packforcing_core.laboratory.training.selfmade import plan, run
from packforcing_core.laboratory.training.selfmade.score import PATIENCE, Score, Scores
from packforcing_core.laboratory.training.selfmade.state import State
from packforcing_core.miniature.load import COMPRESSOR, MODEL, TEXT, VAE
from packforcing_core.model.config import WanConfig
from tests.core.laboratory.training.selfmade.parts import write_checkpoint

CLIPS = 4


@pytest.fixture
def files(tmp_path, monkeypatch) -> dict[str, Path]:
    """A tiny checkpoint's files, and a command that takes two clips for the score and two to learn from."""
    monkeypatch.setattr(run, "HELD", 2)
    monkeypatch.setattr(run, "LEAST_CLIPS", CLIPS)
    # Counting a step takes seconds; `test_plan` does it.
    monkeypatch.setattr(plan, "planned", lambda base, dtype, ways, learns=True: ways.levels * 10**9)
    return write_checkpoint(tmp_path / "files")


def command(files: dict[str, Path], folder: Path, *more: str) -> list[str]:
    given = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    prompts = str(files["checkpoint"].parent / "prompts.txt")
    size = "--width", "48", "--height", "32", "--clip-frames", "12", "--clips", str(CLIPS), "--batch", "2"
    own = "--preset", "self-forcing", "--prompts", prompts, *size, "--hours", "1", "--folder", str(folder)
    return ["train", "compressor", *given, *own, *more]


def test_a_run_leaves_a_compressor_that_says_what_it_is_and_a_killed_one_goes_on_to_the_same(
    files, tmp_path, monkeypatch, capsys
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(files, whole, "--steps", "4", "--score-every", "2")) == 0
    shown = capsys.readouterr().out
    print(shown)
    for said in (
        "clips of 48x32",
        "on the device;",
        "clip 4 of 4",
        "zero-shot",
        "no mid",
        "ended after 4 steps",
    ):
        assert said in shown
    # Killed while clips are made, then in the middle of step 3, whose state is that after step 2.
    for stage, name, nth in ((run.Clips, "make", 3), (run.SelfmadeStage, "step", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(stage, name, killed_at(getattr(stage, name), nth))
            assert main(command(files, killed, "--steps", "4", "--score-every", "2")) == 130
    assert main(command(files, killed, "--steps", "4", "--score-every", "2")) == 0
    names = "tiny-compressor.safetensors", "clips/clip-0-00003.safetensors"
    for name in names:
        one, other = load_file(whole / name), load_file(killed / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [
        [score["steps"] for score in json.loads((f / "scores.json").read_text())["scores"]] for f in (whole, killed)
    ]
    assert steps == [[0, 2, 4], [0, 2, 4]]
    config = WanConfig(dim=128, ffn_dim=128, num_layers=1, num_heads=1, text_dim=128)
    info = load_compressor(whole / names[0], config, 3, base=load_file(files["checkpoint"])).info
    assert set(info.told) == set(TOLD_KEYS)
    assert set(json.loads(info.told["score"])) == {"compressor", "zero-shot", "no mid"}
    assert "zero-shot" in (whole / "tiny-compressor.md").read_text()
    assert main(command(files, whole, "--seed", "1")) == 1
    assert "started with seed '0'" in capsys.readouterr().err


def killed_at(function, nth: int):
    """`function`, interrupted at its `nth` call."""
    calls = []

    def once(*arguments):
        calls.append(1)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return function(*arguments)

    return once


def test_hours_end_a_run_and_more_hours_go_on(files, tmp_path, capsys, monkeypatch):
    ticking = iter(range(0, 10**9, 180))
    monkeypatch.setattr(State, "hours", property(lambda _: next(ticking) / 3600))
    assert main(command(files, tmp_path / "f", "--score-every", "1000")) == 0
    shown = capsys.readouterr().out
    steps = int(shown.split("ended after ")[1].split()[0])
    print(f"an hour of twenty looks at the clock ended it after {steps} steps")
    assert 5 < steps <= 20
    with safe_open(tmp_path / "f" / "tiny-compressor.safetensors", "pt") as file:
        assert file.metadata()["steps"] in ("0", str(steps))


def test_a_score_that_no_longer_falls_settles_and_one_that_falls_does_not(tmp_path):
    scores = Scores(tmp_path / "scores.json")
    for number in range(PATIENCE):
        scores.add(Score(number, 0.0, {"1": 1.0 / (number + 1)}))
        assert not scores.settled
    for number in range(PATIENCE):
        scores.add(Score(PATIENCE + number, 0.0, {"1": 1.0 / PATIENCE}))
    assert scores.settled
    scores.add(Score(3, 0.0, {"1": 0.1}))
    assert [score.steps for score in Scores(tmp_path / "scores.json").scores] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"checkpoint": VAE}, "is a Wan VAE"),
        ({"checkpoint": COMPRESSOR}, "compressor weights"),
        ({"preset": "wan2.1-t2v"}, "is a bidirectional model"),
        ({"preset": None}, "not of a known family"),
        ({"vae": MODEL}, "a Wan transformer"),
        ({"vae": TEXT}, "Wan2.1 VAE"),
        ({"vae": "wan22.safetensors"}, "the Wan2.2 VAE"),
        ({"text-encoder": Path("nowhere")}, "does not exist"),
        ({"prompts": "empty.txt"}, "has 0 prompts"),
        ({"clip-frames": "6"}, "too short"),
        ({"clips": "3"}, "Got --clips 3"),
        ({"hours": "0"}, "Got --hours 0"),
        ({"vram": "0.001"}, "No option makes it fit"),
        ({"width": "832", "height": "480", "clip-frames": "21", "vram": "1.6"}, "With --levels 1"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_loaded(
    change, message, files, tmp_path, capsys, monkeypatch
):
    (tmp_path / "empty.txt").write_text("\n\n")
    save_file({"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.zeros(1)}, tmp_path / "wan22.safetensors")
    monkeypatch.setattr(run, "RESERVE", 0)
    monkeypatch.setattr(run, "built", None)
    monkeypatch.setattr(run, "encoded_texts", None)
    arguments = command(files, tmp_path / "folder")
    for name, value in change.items():
        where = arguments.index(f"--{name}") if f"--{name}" in arguments else len(arguments)
        value = tmp_path / value if value in ("empty.txt", "wan22.safetensors") else value
        arguments[where : where + 2] = [f"--{name}", str(value)] if value is not None else []
    assert main(arguments) == 1
    said = capsys.readouterr().err
    print(said)
    assert message in said
    assert not (tmp_path / "folder").exists()


def test_a_full_disk_is_refused_before_anything_is_loaded(files, tmp_path, capsys, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(run, "built", None)
    monkeypatch.setattr(run, "encoded_texts", None)
    assert main(command(files, tmp_path / "folder")) == 1
    assert "its disk has" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_the_road_needs_all_its_files(files, tmp_path, capsys):
    assert main(["train", "compressor", "--checkpoint", "x", "--folder", "f"]) == 1
    assert "--vae and --text-encoder" in capsys.readouterr().err
    assert main(["train", "twins", "--checkpoint", "x", "--folder", "f"]) == 1
    assert "train compressor" in capsys.readouterr().err
    assert main(["train", "compressor", "--folder", "f", "--hours", "2"]) == 1
    assert "--hours is for" in capsys.readouterr().err
    assert main(command(files, tmp_path / "f", "--minutes", "3")) == 1
    assert "--minutes has no effect with --checkpoint" in capsys.readouterr().err
