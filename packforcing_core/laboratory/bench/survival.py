"""The cost of recording: a recorded rollout compared with one without a folder, and the time to resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...folder.content import Content
from ...folder.folder import RenderFolder, open_render
from ...model.causal import CausalWan
from ...render.parts import build_cache, build_compression
from ...render.recording import Replayed, recorded_events, wanted_manifest
from ...sampler.denoising import BlockDone, Event
from ...sampler.rollout import rollout
from ...text.script import Script
from .clock import in_turns, ratio, seconds_of
from .subject import Plan, build_recipe, build_vae, random_high_res, random_text

TOGETHER = 4
"""Blocks in a compared rollout, from opening a new folder to the last write."""
BEHIND = 40
"""Blocks of the render that is resumed."""

_Events = Generator[Event | Replayed, None, None]


class _Renders:
    """Rollouts of one recipe, decoded and with compressed blocks as in a render, with and without a folder."""

    def __init__(self, plan: Plan, model: CausalWan, root: Path):
        self.model, self.root, self.recipe = model, root, build_recipe(plan.scale)
        self._vae = build_vae(plan.scale, plan.device, plan.dtype)
        self._high_res = random_high_res(plan.scale, model)
        self._script = Script.of(random_text(plan.scale))
        self._count = 0

    def bare(self) -> _Events:
        cache, recipe = build_cache(self.model, self.recipe), self.recipe
        blocks, compression = recipe.geometry.blocks, self._compression()
        return rollout(
            self.model, self._script, cache, recipe.noise(), recipe.denoising, blocks, compression=compression
        )

    def recorded(self, name: str = "", first: int = 0) -> _Events:
        """In the folder `name`, by default a new one."""
        self._count += 1
        folder = self._open(name or f"render-{self._count}")
        return recorded_events(self.model, self.recipe, folder, self._compression(), first=first)

    def _open(self, name: str) -> RenderFolder:
        content = Content(self._script)
        wanted = wanted_manifest(self.recipe, {"model": "random"}, content, self.model.device)
        return open_render(self.root, name, "resume", wanted, content, self.recipe.geometry.block_shape)

    def _compression(self):
        return build_compression(self.model, self._vae, self._high_res)


def survival(plan: Plan, model: CausalWan) -> dict[str, Any]:
    """`recorded_over_bare`: rollouts of a few blocks in turns, opening the folder and the last write included.
    `resume_share`: from opening the folder of a render that has 40 blocks until it stands behind them, over the time
    that these blocks had taken.

    On a CPU seconds are of this process's work in all its threads, the writer's too; on a GPU by the wall.
    """
    clock = time.perf_counter if plan.device.type == "cuda" else time.process_time
    with TemporaryDirectory() as root, torch.no_grad():
        renders = _Renders(plan, model, Path(root))
        runs = {
            "recorded": lambda: _run(renders.recorded, _made(TOGETHER)),
            "bare": lambda: _run(renders.bare, _made(TOGETHER)),
        }
        seconds = in_turns(runs, plan.rounds, plan.device, clock=clock)
        spent = seconds_of(lambda: _run(lambda: renders.recorded("long"), _made(BEHIND)), plan.device, clock)
        resume = seconds_of(lambda: _run(lambda: renders.recorded("long", BEHIND), _replayed), plan.device, clock)
    return {
        "recorded_over_bare": ratio(seconds["recorded"], seconds["bare"]),
        "resume_share": resume / spent,
        "resumed_behind_block": BEHIND,
    }


def _run(begin: Callable[[], _Events], ends: Callable[[object], bool]) -> None:
    """Runs up to the event for which `ends` is true, then stops like a cancelled render."""
    with closing(begin()) as events:
        for event in events:
            if ends(event):
                return
    raise AssertionError("the rollout ended before what was to be timed")


def _made(blocks: int) -> Callable[[object], bool]:
    return lambda event: isinstance(event, BlockDone) and event.block == blocks - 1 and not event.reused


def _replayed(event: object) -> bool:
    return isinstance(event, Replayed) and event.block == BEHIND - 1
