"""A small render with a folder, to be killed and brought back: in this process or in another."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from packforcing_core.cache.config import DeepForcing, Full, PackForcing, SinkWindow
from packforcing_core.folder.content import Content
from packforcing_core.folder.files import read_json
from packforcing_core.folder.fingerprint import fingerprint
from packforcing_core.folder.folder import FINISHED, Mode, RenderFolder, open_render
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_compression
from packforcing_core.render.recording import recorded_events, wanted_manifest
from packforcing_core.render.writing import VideoJob, written_render
from packforcing_core.text.script import Cue, Script
from packforcing_core.video import VideoFormat, read_frames
from tests.policies import ROWS
from tests.small import DENOISING, small_context, small_model
from tests.vaes import TINY, random_vae

POLICIES = {
    "packforcing": PackForcing(sink_frames=3, recent_frames=3, top_k_blocks=2, bank_blocks=3),
    "on_device": PackForcing(3, 3, 2, 3, bank_storage="vram"),
    "window": SinkWindow(9, 3),
    "full": Full(),
    "rolling": SinkWindow(12, 3),
    "deep_forcing": DeepForcing(sink_frames=3, recent_frames=4, budget_frames=8, window_frames=12),
}
MORE_POLICIES = {
    "8 bits": SinkWindow(9, 3, kv_int8="all"),
    "bank in 8 bits": PackForcing(3, 3, 2, 3, bank_storage="ram_int8"),
    "selects again": PackForcing(3, 3, 2, 3, selector="cosine+newest"),
    **{row.name: row.policy for row in ROWS if type(row.policy) not in map(type, POLICIES.values())},
}
TURNS: dict[str, dict] = {
    "blend": {"blend_blocks": 2},
    "recache": {"recache": True},
    "cut": {"change": "cut"},
    "flush": {"change": "flush"},
}
FRAMES_PER_BLOCK = 3


@dataclass(frozen=True)
class Small:
    """The settings of a small render; `prompt` is the seed of its embeddings, `weights` that of the model.

    `turn` is how another prompt begins at block 4.
    """

    policy: str = "packforcing"
    blocks: int = 8
    seed: int = 7
    prompt: int = 1
    weights: int = 0
    mode: Mode = "resume"
    retake_block: int = 0
    segment_blocks: int = 2
    codec: str = "h264"
    width: int = 48
    turn: str = ""

    def recipe(self) -> Recipe:
        geometry = VideoGeometry(self.width, 32, 16.0, FRAMES_PER_BLOCK, self.blocks)
        denoising = replace(DENOISING, rolling=self.policy == "rolling")
        return Recipe(geometry, {**POLICIES, **MORE_POLICIES}[self.policy], denoising, self.seed)

    def script(self) -> Script:
        cue = Cue(0, small_context(seed=self.prompt))
        if not self.turn:
            return Script((cue,))
        return Script((cue, Cue(4, small_context(seed=self.prompt + 100), **TURNS[self.turn])))

    def open(self, root: Path, name: str = "film") -> RenderFolder:
        recipe, model = self.recipe(), small_model(seed=self.weights)
        content = Content(self.script())
        identity = {"model": fingerprint(model.net.state_dict())}
        wanted = wanted_manifest(recipe, identity, content, torch.device("cpu"))
        return open_render(root, name, self.mode, wanted, content, recipe.geometry.block_shape, self.retake_block)

    def job(self, root: Path, folder: RenderFolder, vae, output: str = "") -> VideoJob:
        video_format = VideoFormat(self.codec, fps=16)
        path = root / (output or f"{folder.path.name}.mp4")
        return VideoJob(path, video_format, self.segment_blocks, vae, "small")

    def events(self, root: Path, name: str = "film", model=None, vae=None, output: str = "") -> Iterator:
        """Opens the folder and runs the render to its end, with the parts of the settings or others."""
        folder, recipe = self.open(root, name), self.recipe()
        model, vae = model or small_model(seed=self.weights), vae or random_vae(TINY)

        def source(*, first: int, frugal: bool):
            compression = build_compression(model, vae, None) if recipe.partitions.bank else None
            return recorded_events(model, recipe, folder, compression, first=first, frugal=frugal)

        with torch.inference_mode():
            yield from written_render(folder, recipe, self.job(root, folder, vae, output), source)

    def run(self, root: Path, name: str = "film", **parts) -> list:
        return list(self.events(root, name, **parts))

    def but(self, **changes) -> Small:
        return replace(self, **changes)


def frames(root: Path, name: str = "film") -> np.ndarray:
    """The decoded frames of the video that was finished last."""
    video = read_json(root / name / FINISHED, 1000)["video"]
    return np.stack(list(read_frames(root / video)))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# Real processes, forked from one that has imported everything: they start in milliseconds instead of seconds.
_FORKS = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
_FORKS.set_forkserver_preload([__name__])


class OtherProcess:
    """Runs `work(send, *arguments)` in a process of its own, and kills it when left; `send` sends to `receive`."""

    def __init__(self, work: Callable, *arguments: object):
        self._receiving, sending = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_work, args=(work, sending, *arguments), daemon=True)
        self._process.start()
        sending.close()  # The other process has its own: when it dies, that is the end.

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def receive(self) -> str | None:
        """The next thing sent; None at the end, whether the process returned or died."""
        try:
            return self._receiving.recv()
        except (EOFError, OSError):
            return None

    def alive(self) -> bool:
        return self._process.is_alive()

    def ended(self) -> int:
        """Waits for the end and returns the exit code."""
        while self.receive() is not None:
            pass
        self._process.join(600)
        return self._process.exitcode


def _work(work: Callable, sending: Connection, *arguments: object) -> None:
    torch.set_num_threads(1)
    work(sending.send, *arguments)


def send_events(send: Callable[[str], None], small: Small, root: Path) -> None:
    """Work for another process: the render, which sends the name of each event's kind."""
    for event in small.events(root):
        send(type(event).__name__)
