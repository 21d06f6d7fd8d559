"""VBench's own code on films of ours. Where `vbench` is not installed only what needs none of it is tested; its weights
are nowhere to be had here: the networks are its own with random ones, which shows where it looks for them and that it
runs, and of no score but temporal flickering that it is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from packforcing_core.cli.main import main
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation.vbench_scores import (
    HUB_WEIGHTS,
    WEIGHTS,
    absent_weights,
    available_dimensions,
    vbench_score,
    vbench_scores,
)
from packforcing_core.video import SegmentedWriter, VideoFormat
from packforcing_core.video.reader import read_frames
from tests.films import picture

pytest.importorskip("cv2")

WITH_WEIGHTS = [name for name, files in WEIGHTS.items() if files]
HUBCONF = """
import torch

class Picture(torch.nn.Linear):
    def forward(self, pixels):
        return super().forward(pixels.mean((2, 3)))

def dino_vitb16(pretrained=True, **kwargs):
    model = Picture(3, 8)
    model.load_state_dict(torch.hub.load_state_dict_from_url("https://nowhere/dino_vitbase16_pretrain.pth"))
    return model
"""


def film(path: Path, frames: int, width: int = 128, height: int = 128) -> Path:
    with SegmentedWriter(path, width, height, VideoFormat("h264", quality=18, fps=16)) as writer:
        writer.write(picture(0, frames, width, height))
        writer.finish()
    return path


@pytest.fixture
def vbench(tmp_path: Path, monkeypatch):
    """The real package, its cache an empty folder, and the ways by which it downloads closed."""
    package = pytest.importorskip("vbench", reason="vbench is not installed here: none of its numbers are compared")
    utils = pytest.importorskip("vbench.utils")
    monkeypatch.setattr(utils, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*arguments, **_):
        pytest.fail(f"vbench went on to download: {arguments}")

    for way in ("subprocess.run", "urllib.request.urlopen", "urllib.request.urlretrieve"):
        monkeypatch.setattr(way, refuse)
    return package


def flickering_twin(frames: list[np.ndarray]) -> float:
    """(255 - the mean over neighbours of the mean absolute difference) / 255."""
    differences = []
    for before, after in pairwise(frames):
        differences.append(np.abs(before.astype(np.float64) - after.astype(np.float64)).mean())
    return (255 - sum(differences) / len(differences)) / 255


@pytest.mark.parametrize("written", ["whole", "growing"])
def test_temporal_flickering_is_its_formula(vbench, tmp_path: Path, written: str):
    import cv2

    path = tmp_path / "film.mp4"
    writer = SegmentedWriter(path, 64, 48, VideoFormat("h264", quality=18, fps=16))
    with writer:
        writer.write(picture(0, 24))
        writer.end_segment()
        if written == "whole":
            writer.finish()
    path = path if written == "whole" else writer.growing_path
    video, decoded = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        decoded.append(read[1])
    ours = list(read_frames(path))
    assert len(decoded) == len(ours) == 24

    score = vbench_score(path, "temporal_flickering")
    same, other = flickering_twin(decoded), flickering_twin(ours)
    print(
        f"vbench {score:.9f}; twin on OpenCV's frames differs by {abs(score - same):.1e}, on ours", abs(score - other)
    )
    assert 0.9 < score < 0.999
    assert score == pytest.approx(same, abs=1e-7)
    assert score == pytest.approx(other, abs=5e-4)


def test_the_table_and_the_json_hold_vbench(vbench, tmp_path: Path, capsys):
    path = film(tmp_path / "film.mp4", 8)
    score = vbench_score(path, "temporal_flickering")
    assert main(["evaluate", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"| VBench temporal flickering | {score:.4f} |" in said
    assert main(["evaluate", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)  # vbench prints, too: not there
    assert told["films"][0]["vbench"] == {"temporal_flickering": score}
    for dimension in WITH_WEIGHTS:
        assert any(dimension in note for note in told["notes"])


def test_a_film_of_one_frame_has_no_flicker_to_measure(vbench, tmp_path: Path):
    scores, (note,) = vbench_scores(film(tmp_path / "still.mp4", 1), ["temporal_flickering"])
    assert scores == {}
    assert "vbench returned nan" in note


@pytest.mark.parametrize("dimension", ["motion_smoothness", "dynamic_degree"])
def test_films_too_small_for_its_networks_are_refused(vbench, tmp_path: Path, monkeypatch, dimension: str):
    monkeypatch.setattr("packforcing_core.laboratory.evaluation.vbench_scores.absent_weights", lambda *_: [])
    with pytest.raises(PackForcingError, match="less than 128 pixels; this one is 128 x 64"):
        vbench_score(film(tmp_path / "film.mp4", 4, height=64), dimension)


def test_the_smallest_film_its_networks_see_is_of_128_pixels(vbench):
    raft = pytest.importorskip("vbench.third_party.RAFT.core.raft").RAFT
    edict = pytest.importorskip("easydict").EasyDict
    network = raft(edict(small=False, mixed_precision=False, alternate_corr=False)).eval()
    for side, finite in ((112, False), (128, True)):
        with torch.no_grad():
            flow = network(*torch.rand(2, 1, 3, side, 128), iters=1, test_mode=True)[1]
        print(side, "finite:", flow.isfinite().float().mean().item())
        assert bool(flow.isfinite().all()) is finite


@pytest.mark.integration
@pytest.mark.parametrize("dimension", WITH_WEIGHTS)
def test_vbench_finds_the_weights_where_they_are_expected(vbench, tmp_path: Path, dimension: str):
    pytest.importorskip(f"vbench.{dimension}", reason=f"what vbench's {dimension} needs is not installed")
    path, cache = film(tmp_path / "film.mp4", 3), tmp_path / "cache"
    with pytest.raises(PackForcingError, match="needs weights at"):
        vbench_score(path, dimension)
    torch.manual_seed(0)
    for file in absent_weights(dimension, cache):
        file.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[file.name](file)
    score = vbench_score(path, dimension)
    print(dimension, "of random weights:", score)
    assert dimension in available_dimensions()[0]
    if dimension == "dynamic_degree":
        assert score in (0.0, 1.0)
    else:
        assert -1 < score <= 1.0001


def write_amt(file: Path) -> None:
    from omegaconf import OmegaConf
    from vbench import __file__ as package
    from vbench.third_party.amt.utils.build_utils import build_from_cfg

    network = OmegaConf.load(Path(package).with_name("third_party") / "amt/cfgs/AMT-S.yaml").network
    torch.save({"state_dict": build_from_cfg(network).state_dict()}, file)


def write_raft(file: Path) -> None:
    from easydict import EasyDict
    from vbench.third_party.RAFT.core.raft import RAFT

    network = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, file)


def write_musiq(file: Path) -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.save(MUSIQ(pretrained=False).state_dict(), file)


def write_clip(file: Path) -> None:
    from clip.model import CLIP

    network = CLIP(768, 224, 2, 64, 32, 77, 50, 64, 1, 1).eval()
    pictures, words = torch.rand(2, 3, 224, 224), torch.ones(2, 77, dtype=torch.long)
    torch.jit.trace(network, (pictures, words), check_trace=False).save(str(file))


WRITERS: dict[str, Callable[[Path], object]] = {
    "amt-s.pth": write_amt,
    "raft-things.pth": write_raft,
    "musiq_spaq_ckpt-358bb6af.pth": write_musiq,
    "ViT-B-32.pt": write_clip,
    "ViT-L-14.pt": write_clip,
    "sa_0_4_vit_l_14_linear.pth": lambda file: torch.save(torch.nn.Linear(768, 1).state_dict(), file),
    "dino_vitbase16_pretrain.pth": lambda file: torch.save(torch.nn.Linear(3, 8).state_dict(), file),
    "hubconf.py": lambda file: file.write_text(HUBCONF),
}


@pytest.mark.parametrize("dimension", WEIGHTS)
def test_every_absent_file_is_named(tmp_path: Path, monkeypatch, dimension: str):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    absent = absent_weights(dimension, tmp_path)
    assert len(absent) == len(WEIGHTS[dimension]) + (dimension in HUB_WEIGHTS)
    for place, file in enumerate(absent):
        assert absent_weights(dimension, tmp_path) == absent[place:]
        file.mkdir(parents=True)  # a folder is no file: vbench would download
        assert absent_weights(dimension, tmp_path) == absent[place:]
        file.rmdir()
        file.touch()
    assert absent_weights(dimension, tmp_path) == []


def test_a_vbench_that_cannot_be_imported_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vbench", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    # As a torchvision that was built for another torch does, and not with an ImportError.
    (tmp_path / "vbench.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    dimensions, (said,) = available_dimensions()
    print(said)
    assert dimensions == []
    assert "operator torchvision::nms does not exist" in said
    assert "README.md for what to install" in said
