"""A small render with a folder, to be killed and brought back: in this process or, run as a program, in another.

python -m tests.survivor ROOT '{"policy": "packforcing", "blocks": 8}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from packforcing_core.cache.config import DeepForcing, Full, PackForcing, SinkWindow
from packforcing_core.filmed import FilmJob, filmed_render
from packforcing_core.folder.fingerprint import fingerprint
from packforcing_core.folder.folder import Mode, RenderFolder, open_render
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recorded import sampled_events, wanted_manifest
from packforcing_core.render import Recipe, build_twins
from packforcing_core.video import VideoFormat, read_frames
from tests.small import DENOISING, small_context, small_model
from tests.vaes import random_vae

POLICIES = {
    "packforcing": PackForcing(sink_frames=3, recent_frames=3, top_k_blocks=2, bank_blocks=3),
    "on_device": PackForcing(3, 3, 2, 3, bank_storage="device"),
    "window": SinkWindow(9, 3),
    "full": Full(),
    "rolling": SinkWindow(12, 3),
    "deep_forcing": DeepForcing(sink_frames=3, recent_frames=4, budget_frames=8, window_frames=12),
}
FRAMES_PER_BLOCK = 3


@dataclass(frozen=True)
class Small:
    """The settings of a small render; `prompt` is the seed of its embeddings, `weights` that of the model."""

    policy: str = "packforcing"
    blocks: int = 8
    seed: int = 7
    prompt: int = 1
    weights: int = 0
    mode: Mode = "resume"
    retake_block: int = 0
    snapshot_blocks: int = 2
    segment_blocks: int = 2
    codec: str = "h264"
    width: int = 48

    def recipe(self) -> Recipe:
        geometry = VideoGeometry(self.width, 32, 16.0, FRAMES_PER_BLOCK, self.blocks)
        denoising = replace(DENOISING, rolling=self.policy == "rolling")
        return Recipe(geometry, POLICIES[self.policy], denoising, self.seed)

    def open(self, root: Path, name: str = "film") -> RenderFolder:
        recipe, context, model = self.recipe(), small_context(seed=self.prompt), small_model(seed=self.weights)
        identity = {"model": fingerprint(model.net.state_dict())}
        wanted = wanted_manifest(recipe, identity, context, torch.device("cpu"))
        return open_render(root, name, self.mode, wanted, context, recipe.geometry.block_shape, self.retake_block)

    def job(self, root: Path, folder: RenderFolder, vae) -> FilmJob:
        video_format = VideoFormat(self.codec, fps=16)
        path = root / f"{folder.path.name}.mp4"
        shared = POLICIES[self.policy].name == "packforcing"
        every = self.snapshot_blocks
        return FilmJob(path, video_format, self.segment_blocks, vae, "small", shared, every)

    def events(self, root: Path, name: str = "film", model=None, vae=None) -> Iterator:
        """Opens the folder and runs the render to its end, with the parts of the settings or others."""
        folder, recipe = self.open(root, name), self.recipe()
        model, vae = model or small_model(seed=self.weights), vae or random_vae()

        def make_twins():
            return build_twins(model, vae, None) if recipe.partitions.bank else None

        source = partial(sampled_events, model, recipe, folder, make_twins, self.snapshot_blocks)
        with torch.inference_mode():
            yield from filmed_render(folder, recipe, self.job(root, folder, vae), source)

    def run(self, root: Path, name: str = "film", **parts) -> list:
        return list(self.events(root, name, **parts))

    def but(self, **changes) -> Small:
        return replace(self, **changes)


def frames(root: Path, name: str = "film") -> np.ndarray:
    """The decoded frames of the finished film."""
    return np.stack(list(read_frames(root / f"{name}.mp4")))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for event in Small(**json.loads(sys.argv[2])).events(Path(sys.argv[1])):
        print(type(event).__name__, getattr(event, "block", ""), flush=True)
