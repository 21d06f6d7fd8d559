"""The public API: the lines of the README run, and what cannot be is refused before any work."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core import api
from packforcing_core.checkpoint.load import read_checkpoint
from packforcing_core.compressor import base as bases
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.compressor.weights import CompressorInfo, save_compressor
from packforcing_core.errors import PackForcingError
from packforcing_core.video import probe
from tests.checkpoints import SMALL, write_family
from tests.vaes import TINY, random_vae

README = Path(__file__).parents[2] / "README.md"


def test_the_lines_of_the_readme_render_a_video(tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"<!-- python -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(lines.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.py").write_text(lines, encoding="utf-8")
    runpy.run_path(str(tmp_path / "lines.py"))
    (tmp_path / "lines.py").unlink()
    said = capsys.readouterr().out
    print(said)
    assert said.startswith("block 0: ")
    assert said.splitlines()[-1].endswith("circle.mp4")
    assert probe(tmp_path / "circle.mp4").frames == 29
    assert [path.name for path in tmp_path.iterdir()] == ["circle.mp4"], "the folder of a finished render is gone"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 18446744073709551615"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"width": 100}, "width is 100"),
        ({"timesteps": (250.0, 1000.0)}, "falling"),
        ({"policy": "none"}, "none"),
        ({"preset": "none"}, "none"),
        ({"blend_seconds": -1.0}, "blend_seconds is -1"),
        ({"knobs": {"no_such": 1}}, "no_such"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(PackForcingError, match=message):
        api.Settings(**settings).recipe()


def test_nothing_chosen_is_how_the_checkpoint_was_trained():
    from packforcing_core.checkpoint.families import FAMILIES
    from packforcing_core.recipe.recipe import default_policy

    for family in FAMILIES.values():
        recipe = api.Settings().recipe(family)
        assert recipe.geometry.frames_per_block == family.frames_per_block
        assert recipe.policy == default_policy(family)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"mode": "extend"}, "needs the folder"),
        ({"blocks_per_segment": 0}, "blocks_per_segment is 0"),
        ({"path": Path("film.avi")}, "ends in .mp4"),
    ],
)
def test_a_place_that_cannot_be_is_refused(place, message):
    with pytest.raises(PackForcingError, match=message):
        api.Place(**{"path": Path("film.mp4"), **place})


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"device": "no_such"}, "Device 'no_such' cannot be used: .*Try device cpu"),
        ({"decode_device": "meta:x"}, "Device 'meta:x' cannot be used: .*Try decode_device cpu"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_before_a_file_is_read(devices, message):
    with pytest.raises(PackForcingError, match=message):
        api.load_models("no checkpoint.pt", "no vae.pt", device=devices.pop("device", "cpu"), **devices)


def test_a_compressor_of_another_base_is_refused(tmp_path):
    (checkpoint, *_) = write_family(tmp_path, "self-forcing")
    other = {name: value + torch.randn_like(value) for name, value in read_checkpoint(checkpoint).state_dict.items()}
    info = CompressorInfo("another", 3, "test", bases.sampled(other))
    file, vae = tmp_path / "other.safetensors", tmp_path / "vae.safetensors"
    save_compressor(file, build_high_res(SMALL.dim), info)
    save_file(random_vae(TINY).state_dict(), vae)
    with pytest.raises(PackForcingError, match="other weights"):
        api.load_models(
            checkpoint, tmp_path / "vae.safetensors", compressor=tmp_path / "other.safetensors", device="cpu"
        )
