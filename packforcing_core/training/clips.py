"""Training data: clips of the little world, drawn on the fly from (seed, step, index)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..evaluation.little_world.draw import draw
from ..evaluation.little_world.prompt import describe
from ..evaluation.little_world.scene import Scene, sample_scene


@dataclass(frozen=True)
class Clips:
    """A batch: `video` [B, 3, T, H, W] in -1..1, with the scenes that were drawn and their prompts."""

    video: Tensor
    scenes: tuple[Scene, ...]
    prompts: tuple[str, ...]


def draw_clips(seed: int, step: int, indices: Iterable[int], frames: int) -> Clips:
    """Clips of one step. Clip i depends on (seed, step, i) alone, whoever else draws the others."""
    scenes = tuple(sample_scene(np.random.default_rng((seed, step, index))) for index in indices)
    video = torch.stack([torch.from_numpy(draw(scene, frames)) for scene in scenes])
    pixels = video.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
    return Clips(pixels, scenes, tuple(describe(scene) for scene in scenes))
