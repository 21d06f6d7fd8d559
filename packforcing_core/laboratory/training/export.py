"""Exports the networks of a stage: averaged weights (EMA) with the official names, in bfloat16."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ...compressor.high_res import Fusion, HighRes, build_high_res
from ...compressor.weights import CompressorInfo, save_compressor
from . import ranks
from .loop import Training
from .setup import Setup


def exporter(setup: Setup, stage: str, files: Mapping[str, str]) -> Callable[[Training], list[Path]]:
    """Returns a function that writes each network's averaged weights to its file. `files` maps the networks' names to
    the files' stems.
    """

    def export(training: Training) -> list[Path]:
        written = []
        for network, stem in files.items():
            learner, path = training.learners[network], setup.exported(stem)
            weights = learner.averaged()
            if isinstance(learner.network, HighRes):
                write_compressor(path, weights, setup, stage, learner.network.fusion)
            else:
                write_weights(path, weights)
            written.append(path)
        return written

    return export


def write_compressor(path: Path, weights: Mapping[str, Tensor], setup: Setup, stage: str, fusion: Fusion) -> None:
    if ranks.rank() == 0:
        branch = build_high_res(setup.size.model.dim, fusion=fusion)
        branch.load_state_dict(weights)
        info = CompressorInfo(setup.size.name, setup.size.clips.frames_per_block, f"packforcing train {stage}")
        save_compressor(path, branch.bfloat16(), info)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> Path:
    """Writes weights in bfloat16; an existing file is replaced in one step. Only rank 0 writes."""
    if ranks.rank() == 0:
        save_file({name: t.cpu().bfloat16().contiguous() for name, t in weights.items()}, f"{path}.part")
        os.replace(f"{path}.part", path)
    return path
