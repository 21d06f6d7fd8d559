"""The command from the VAE to the causal model, at a size of seconds; what it says before; what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from packforcing_core.checkpoint.load import read_checkpoint
from packforcing_core.cli.main import main
from packforcing_core.compressor.weights import load_compressor
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training import saved
from packforcing_core.laboratory.training.data import LatentFolder
from packforcing_core.laboratory.training.dmd import WAN_COMPRESSOR, WAN_CRITIC, WAN_GENERATOR
from packforcing_core.laboratory.training.presets import MINIATURE, WAN_1_3B
from packforcing_core.laboratory.training.stages import STAGES
from packforcing_core.miniature import load as miniature
from packforcing_core.vae.load import load_vae
from tests.core.laboratory.training.tiny import TINY, tiny_size, train

pytestmark = pytest.mark.integration

MODEL = str(miniature.MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the command has gone from the VAE to the causal model with the compressor."""
    found = tmp_path_factory.mktemp("training")
    with tiny_size():
        for stage, *more in (
            ("vae", "--steps", "4", "--batch", "2"),
            ("latents", "--clips", "3"),
            ("teacher", "--steps", "2", "--batch", "2"),
            ("causal", "--steps", "2", "--batch", "2"),
            ("twins", "--steps", "2", "--batch", "2", "--recompute"),
        ):
            assert train(stage, found, *more) == 0
        yield found


def test_every_stage_leaves_weights_that_load_by_their_official_names(folder):
    load_vae(folder / "vae.safetensors")
    for stem in ("teacher", "causal", "twins"):
        assert read_checkpoint(folder / f"{stem}.safetensors").config.dim == TINY.model.dim
    load_compressor(folder / "twins-compressor.safetensors", TINY.model, TINY.clips.frames_per_block)
    assert {p.name for p in folder.iterdir() if p.is_dir()} >= {"vae", "latents", "teacher", "causal", "twins"}
    for stage in ("vae", "teacher", "causal", "twins"):
        assert saved.saved_step(folder / stage) == (4 if stage == "vae" else 2)
        assert list((folder / stage / "log").iterdir())


def test_latents_are_kept_with_their_prompts_and_drawn_by_seed_and_step(folder):
    (shard,) = (folder / "latents").glob("*.safetensors")
    with safe_open(shard, "pt") as file:
        prompts = json.loads(file.metadata()["prompts"])
    tensors = load_file(shard)
    assert len(prompts) == len(tensors["latents"])
    assert tensors["low_res"].shape == (
        3,
        16,
        3,
        2,
        4,
    )  # three blocks of one cell in time and 1 x 2 patches
    asked: list[str] = []
    clips = LatentFolder(folder / "latents", lambda texts: asked.extend(texts) or torch.zeros(len(texts), 1, 1), 2, 0)
    first, again, *others = (clips(step) for step in (5, 5, 6, 7, 8))
    assert torch.equal(first.latents, again.latents)
    assert first.latents.shape == (2, 16, 6, 8, 16)
    assert asked[:2] == asked[2:4]
    assert any(not torch.equal(first.latents, other.latents) for other in others)


def test_the_same_command_goes_on(folder, capsys):
    assert train("teacher", folder, "--batch", "2", "--steps", "3") == 0
    shown = capsys.readouterr()
    assert "Memory of stage 'teacher'" in shown.out
    assert saved.saved_step(folder / "teacher") == 3
    assert "3/3" in shown.err


def test_a_crash_while_saving_leaves_the_state_before(tmp_path, monkeypatch):
    tensors = {"a": torch.arange(4.0), "b": torch.tensor(7.0)}
    saved.save(tensors, tmp_path, 5)

    def torn(*_):
        raise OSError("the power went out")

    monkeypatch.setattr(saved.os, "replace", torn)
    with pytest.raises(OSError, match="power"):
        saved.save({name: t + 1 for name, t in tensors.items()}, tmp_path, 10)
    monkeypatch.undo()
    assert saved.saved_step(tmp_path) == 5
    found = {name: torch.zeros_like(t) for name, t in tensors.items()}
    saved.load(found, tmp_path, 5)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    saved.save(tensors, tmp_path, 10)
    assert {p.name for p in tmp_path.iterdir()} == {"state-00000010"}


def test_a_state_of_another_training_is_refused(tmp_path):
    saved.save({"a": torch.zeros(2)}, tmp_path, 1)
    with pytest.raises(PackForcingError, match="belongs to another training"):
        saved.load({"b": torch.zeros(2)}, tmp_path, 1)


def test_a_dry_run_builds_the_whole_of_1_3b_and_says_what_it_takes(capsys):
    command = ["train", "self-forcing", "--folder", "unused", "--size", "1.3B", "--dry-run", "--ranks", "8"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    print(shown)
    assert "20 latent frames of 832 x 480" in shown
    for name in ("generator: Wan, 30 layers, 1,418,996,800", "compressor: HighRes", "critic: Wan", "teacher: Wan"):
        assert name in shown
    for rate in (WAN_GENERATOR, WAN_COMPRESSOR, WAN_CRITIC):
        assert f"learns at {rate.learning_rate:g}\n" in shown
    assert "layers recomputed" in shown
    assert "all kept" in shown


@pytest.mark.parametrize(
    "options, message",
    [
        (["vae", "--size", "2B"], "expected one of miniature, 1.3B"),
        (["flow"], "expected one of latents"),
        (["teacher"], "has no latents"),
        (["vae", "--size", "1.3B"], "official VAE"),
        (["teacher", "--size", "1.3B"], "--weights"),
        (["latents", "--size", "1.3B"], "--vae"),
        (["distill"], "packforcing train causal"),
        (["self-forcing"], "packforcing train causal"),
        (["self-forcing", "--weights", MODEL], "packforcing train teacher"),
        (["self-forcing", "--weights", MODEL, "--teacher", MODEL], "packforcing train vae"),
        (["compressor", "--weights", MODEL], "has no latents"),
        (["distill", "--weights", MODEL, "--size", "1.3B"], "Choose its --size"),
        (["causal", "--dry-run"], "it is for self-forcing"),
    ],
)
def test_what_cannot_be_trained_is_said(options, message, tmp_path, capsys):
    assert main(["train", *options, "--folder", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_a_size_says_what_its_stages_are():
    assert set(MINIATURE.courses) == set(STAGES)
    assert set(WAN_1_3B.courses) == set(STAGES) - {"vae", "layouts"}  # Only the toy world knows what is blank.
