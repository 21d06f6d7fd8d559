"""VBench's dimensions for your own videos, if the `vbench` package is installed and its weights are on disk.

Written for vbench 0.1.5. The package downloads whatever is missing, so a dimension is used only if every file that it
opens exists; nothing is downloaded from here.
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
"""The dimensions that need nothing but a video, and the files each opens in vbench's cache."""

HUB_WEIGHTS: Mapping[str, str] = {"subject_consistency": "dino_vitbase16_pretrain.pth"}
"""What a dimension also takes from torch.hub's checkpoints: DINO's own hubconf.py loads its weights from there, and the
copy in vbench's cache is only looked for."""

LEAST_SIDE: Mapping[str, int] = {"motion_smoothness": 128, "dynamic_degree": 128}
"""Pixels of the shorter side below which AMT's and RAFT's coarsest level is one pixel high and all they say is NaN,
which vbench then turns into a plausible score."""

INSTALLING = "see 'VBench' in packforcing_core/laboratory/evaluation/README.md for what to install"


def cache_folder() -> Path:
    """Where vbench keeps its weights: its own answer, from VBENCH_CACHE_DIR as it was when it was first imported."""
    return Path(_module("utils").CACHE_DIR)


def absent_weights(dimension: str, cache: Path) -> list[Path]:
    """The files that a dimension of WEIGHTS opens and that are not there, in `cache` and in torch.hub's folder."""
    files = [cache / file for file in WEIGHTS[dimension]]
    if dimension in HUB_WEIGHTS:
        files.append(Path(torch.hub.get_dir()) / "checkpoints" / HUB_WEIGHTS[dimension])
    return [file for file in files if not file.is_file()]


def available_dimensions() -> tuple[list[str], tuple[str, ...]]:
    """The dimensions that can be measured here, and sentences on those that cannot (none where all can)."""
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
    """Each of the dimensions of a video by itself, and sentences on those that failed."""
    scores, notes = {}, []
    for dimension in dimensions:
        try:
            scores[dimension] = vbench_score(path, dimension, device)
        except PackForcingError as error:
            notes.append(str(error))
    return scores, tuple(notes)


def vbench_score(path: Path, dimension: str, device: str = "cpu") -> float:
    """A dimension of WEIGHTS of an .mp4, by vbench itself: 0 to 1, more is better, but for dynamic_degree: 1 where the
    video moves, 0 where it does not. vbench holds all frames in memory.

    Raises PackForcingError where vbench cannot be imported, a file of weights is absent, the video is too small, or
    vbench fails or answers with what is no number."""
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
    # Its dimensions are research code that raises what it likes, from assertions to a missing `wget`.
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
    # It prints to stdout, where a caller may be writing JSON; and some dimensions keep a graph of all frames.
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr), torch.no_grad():
        vbench.VBench(device, str(known), folder).evaluate(
            videos_path=str(path.absolute()),
            name="film",
            dimension_list=[dimension],
            local=True,
            mode="custom_input",
        )
        results = json.loads((Path(folder) / "film_eval_results.json").read_text(encoding="utf-8"))
    # The mean over the videos, then an entry a video, whose scale differs between dimensions; here is one video.
    mean, _ = results[dimension]
    return float(mean)


def _module(name: str = "") -> ModuleType:
    """vbench, or a module of it. Raises PackForcingError that says what it lacks."""
    try:
        with redirect_stdout(sys.stderr):
            package = importlib.import_module("vbench")
            return importlib.import_module(f"vbench.{name}") if name else package
    # Not ImportError alone: a torchvision of another torch raises RuntimeError.
    except Exception as error:
        raise PackForcingError(
            f"`vbench{'.' * bool(name)}{name}` cannot be imported ({type(error).__name__}: {error}); {INSTALLING}."
        ) from error
