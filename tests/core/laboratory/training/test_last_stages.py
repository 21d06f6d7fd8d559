"""The commands that go on from a causal model, each a few steps: what they begin with, leave, and go on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.cli.main import main
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.compressor.weights import CompressorInfo, load_compressor, save_compressor
from packforcing_core.geometry import compressed_grid
from packforcing_core.laboratory.training.export import write_weights
from packforcing_core.laboratory.training.presets import MINIATURE, Size
from packforcing_core.laboratory.training.vae import initialise
from packforcing_core.miniature import load as miniature
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.vae.wan_vae import WanVAE
from tests.core.laboratory.training.tiny import TINY, tiny_size, train

pytestmark = pytest.mark.integration

MODEL = str(miniature.MODEL)


def write_clips(folder: Path, size: Size) -> None:
    """Two clips of noise, encoded as `packforcing train latents` leaves them."""
    clips, generator = size.clips, torch.Generator().manual_seed(0)
    height, width = clips.height // 8, clips.width // 8
    times, rows, columns = compressed_grid(clips.frames_per_block, height, width)
    blocks = clips.latent_frames // clips.frames_per_block
    latents = torch.randn(2, 16, clips.latent_frames, height, width, generator=generator).half()
    low_res = torch.randn(2, 16, blocks * times, 2 * rows, 2 * columns, generator=generator).half()
    (folder / "latents").mkdir()
    prompts = {"prompts": json.dumps([miniature.PROMPT] * 2)}
    save_file({"latents": latents, "low_res": low_res}, folder / "latents" / "0.safetensors", prompts)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder as the commands before leave it, with random weights."""
    found = tmp_path_factory.mktemp("begun")
    write_clips(found, TINY)
    torch.manual_seed(0)
    for stem in ("teacher", "twins"):
        write_weights(found / f"{stem}.safetensors", Wan(TINY.model, TorchOps).state_dict())
    vae = WanVAE(TINY.vae)
    initialise(vae, seed=0)
    write_weights(found / "vae.safetensors", vae.state_dict())
    info = CompressorInfo(TINY.name, TINY.clips.frames_per_block, "nothing")
    save_compressor(found / "twins-compressor.safetensors", build_high_res(TINY.model.dim), info)
    with tiny_size():
        yield found


LAST_STAGES = {  # by its steps: all, and where it is left once
    "distill": (2, 1, ("distill",)),
    "self-forcing": (7, 5, ("self-forcing", "self-forcing-compressor")),
    "compressor": (2, 1, ("compressor",)),
}


@pytest.mark.parametrize("stage", LAST_STAGES)
def test_a_stage_runs_says_what_it_takes_and_goes_on_bit_for_bit(stage, begun, tmp_path, capsys):
    steps, left, files = LAST_STAGES[stage]
    other = tmp_path / "resumed"
    other.mkdir()
    for path in begun.iterdir():
        (tmp_path / path.name).symlink_to(path)
        (other / path.name).symlink_to(path)
    assert train(stage, tmp_path, "--steps", str(steps)) == 0
    said = capsys.readouterr().out
    print(said)
    assert f"starts from {tmp_path / 'twins.safetensors'}" in said
    assert f"Memory of stage '{stage}'" in said
    for file in files:
        assert str(tmp_path / f"{file}.safetensors") in said
        assert load_file(tmp_path / f"{file}.safetensors")
    for until in (left, steps):
        assert train(stage, other, "--steps", str(until)) == 0
    whole, resumed = (load_file(next(f.glob(f"{stage}/state-{steps:08d}/*.safetensors"))) for f in (tmp_path, other))
    assert set(whole) == set(resumed)
    # The time that it took is saved too, for --minutes; it alone is never the same.
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == ["training.seconds"]


def test_a_compressor_of_the_second_form_is_trained_and_goes_on_as_such(begun, tmp_path, capsys):
    for path in begun.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert train("compressor", tmp_path, "--fusion", "concat", "--steps", "1") == 0
    file = tmp_path / "compressor.safetensors"
    loaded = load_compressor(file, TINY.model, TINY.clips.frames_per_block)
    assert loaded.high_res.fusion == "concat"
    untrained = build_high_res(TINY.model.dim, 0, "concat").bfloat16().state_dict()
    still = [name for name, value in loaded.high_res.state_dict().items() if torch.equal(value, untrained[name])]
    assert still == []
    for options, message in (
        (("compressor", "--steps", "2"), "belongs to another training: "),
        (("self-forcing", "--fusion", "concat"), "twins-compressor.safetensors, has fusion 'add'"),
        (("causal", "--fusion", "concat"), "trains no compressor; expected one of twins, layouts, self-forcing"),
    ):
        capsys.readouterr()
        assert train(options[0], tmp_path, *options[1:]) == 1
        assert message in capsys.readouterr().err
    assert train("compressor", tmp_path, "--compressor", str(file), "--fusion", "concat", "--steps", "2") == 0


def test_twins_go_on_from_the_shipped_miniature(tmp_path, capsys):
    write_clips(tmp_path, MINIATURE)
    given = ("--weights", MODEL, "--compressor", str(miniature.COMPRESSOR), "--text", str(miniature.TEXT))
    command = ["train", "twins", "--folder", str(tmp_path), "--batch", "1", "--steps", "2"]
    assert main([*command, *given]) == 0
    said = capsys.readouterr().out
    assert f"starts from {MODEL}" in said
    assert f"starts from {miniature.COMPRESSOR}" in said
    for stem, shipped in (("twins", miniature.MODEL), ("twins-compressor", miniature.COMPRESSOR)):
        before, after = load_file(shipped), load_file(tmp_path / f"{stem}.safetensors")
        moved = max((after[name].float() - before[name].float()).abs().max().item() for name in before)
        print(f"{stem}: moved by {moved:.1e} at most")
        assert 0 < moved < 2e-3
    shipped, own = load_file(miniature.TEXT), load_file(tmp_path / "text.safetensors")
    assert all(torch.equal(shipped[name], own[name][: len(shipped[name])]) for name in shipped)
