"""VBench's dimensions for your own videos, if the `vbench` package is installed and its weights are on disk.

Written for vbench 0.1.5. The package downloads missing files, so a dimension is used only if every file that it opens
exists; nothing is downloaded from here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch

from ...errors import PackForcingError
from ...video.reader import probe

WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "temporal_flickering": (),
    "subject_consistency": (
        "dino_model/dino_vitbase16_pretrain.pth",
        "dino_model/facebookresearch_dino_main/hubconf.py",
    ),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
}
"""The dimensions that need only a video, and the files that each opens in vbench's cache."""

HUB_WEIGHTS: Mapping[str, str] = {"subject_consistency": "dino_vitbase16_pretrain.pth"}
"""Files that a dimension also needs in torch.hub's checkpoints: DINO's own hubconf.py loads its weights from there, and
vbench only checks that the copy in its cache exists.
"""

LEAST_SIDE: Mapping[str, int] = {"motion_smoothness": 128, "dynamic_degree": 128}
"""Minimum length of the shorter side in pixels. Below it the coarsest level of AMT and RAFT is one pixel high and their
outputs are NaN, which vbench turns into a plausible score.
"""

INSTALLING = "see 'VBench' in packforcing_core/laboratory/evaluation/README.md for what to install"


def cache_folder() -> Path:
    """Returns the folder of vbench's weights, as vbench itself resolved it from VBENCH_CACHE_DIR on its
    first import.
    """
    return Path(_module("utils").CACHE_DIR)


def absent_weights(dimension: str, cache: Path) -> list[Path]:
    """Returns the missing files among those that a dimension of WEIGHTS opens in `cache` and in torch.hub's folder."""
    files = [cache / file for file in WEIGHTS[dimension]]
    if dimension in HUB_WEIGHTS:
        files.append(Path(torch.hub.get_dir()) / "checkpoints" / HUB_WEIGHTS[dimension])
    return [file for file in files if not file.is_file()]


def available_dimensions() -> tuple[list[str], tuple[str, ...]]:
    """Returns the dimensions that can be measured here, and one sentence for each problem with the others."""
    if importlib.util.find_spec("vbench") is None:
        return [], (f"VBench was not measured: the package `vbench` is not installed ({INSTALLING}).",)
    try:
        cache = cache_folder()
    except PackForcingError as error:
        return [], (f"VBench was not measured: {error}",)
    able, lacking, broken = [], [], []
    for dimension in WEIGHTS:
        absent = absent_weights(dimension, cache)
        if absent:
            lacking.append(f"{dimension} ({', '.join(map(str, absent))})")
            continue
        try:
            _module(dimension)
            able.append(dimension)
        except PackForcingError as error:
            broken.append(f"VBench's {dimension} was not measured: {error}")
    if lacking:
        broken.insert(0, f"VBench: not measured, because weights are missing: {'; '.join(lacking)}.")
    return able, tuple(broken)


def vbench_scores(
    path: Path, dimensions: Sequence[str], device: str = "cpu"
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Returns the score of each dimension, and one sentence for each that failed."""
    scores, notes = {}, []
    for dimension in dimensions:
        try:
            scores[dimension] = vbench_score(path, dimension, device)
        except PackForcingError as error:
            notes.append(str(error))
    return scores, tuple(notes)


def vbench_score(path: Path, dimension: str, device: str = "cpu") -> float:
    """Returns a video's score in a dimension of WEIGHTS, computed by vbench: 0 to 1, higher is better. The exception is
    dynamic_degree: 1 if the video moves, else 0. The file is an .mp4. vbench holds all frames in memory.

    Raises PackForcingError if vbench cannot be imported, weights are missing, the video is too small, or vbench fails
    or returns a value that is not finite.
    """
    vbench = _module()
    absent = absent_weights(dimension, cache_folder())
    if absent:
        raise PackForcingError(f"VBench's {dimension} needs weights at {', '.join(map(str, absent))}; put them there.")
    info = probe(path)
    if min(info.width, info.height) < LEAST_SIDE.get(dimension, 1):
        raise PackForcingError(
            f"{path.name}: VBench's {dimension} was not measured: its network does not work on videos whose "
            f"shorter side has less than {LEAST_SIDE[dimension]} pixels; this one is {info.width} x {info.height}."
        )
    try:
        score = _evaluate(vbench, path, dimension, device)
    # Its dimensions raise all kinds of exceptions, from failed assertions to a missing `wget`.
    except Exception as error:
        raise PackForcingError(
            f"{path.name}: VBench's {dimension} was not measured: vbench failed with {type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(score):
        raise PackForcingError(
            f"{path.name}: VBench's {dimension} was not measured: vbench returned {score}; expected a number. It "
            "needs a video of two frames or more that OpenCV and decord can read."
        )
    return score


def _evaluate(vbench: ModuleType, path: Path, dimension: str, device: str) -> float:
    known = Path(str(vbench.__file__)).with_name("VBench_full_info.json")
    # vbench prints to stdout, where a caller may write JSON; some dimensions keep an autograd graph of all frames.
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr), torch.no_grad():
        vbench.VBench(device, str(known), folder).evaluate(
            videos_path=str(path.absolute()),
            name="film",
            dimension_list=[dimension],
            local=True,
            mode="custom_input",
        )
        results = json.loads((Path(folder) / "film_eval_results.json").read_text(encoding="utf-8"))
    # The mean over the videos, then one entry per video, whose scale differs between dimensions. Here is one video.
    mean, _ = results[dimension]
    return float(mean)


def _module(name: str = "") -> ModuleType:
    """Imports vbench or one of its modules. Raises PackForcingError with the reason if that fails."""
    try:
        with redirect_stdout(sys.stderr):
            package = importlib.import_module("vbench")
            return importlib.import_module(f"vbench.{name}") if name else package
    # Not only ImportError: a torchvision built for another torch raises RuntimeError.
    except Exception as error:
        raise PackForcingError(
            f"`vbench{'.' * bool(name)}{name}` cannot be imported ({type(error).__name__}: {error}); {INSTALLING}."
        ) from error
