"""The rolling rollout: one model call denoises as many blocks as there are steps, each one step noisier than the last.

    call 0    0                     blocks 0, 1, 2, ... at their steps, of 3
    call 1    1 0
    call 2    2 1 0                 block 0 is clean: committed, yielded
    call 3      2 1 0               block 1
    call 4        2 1 0             block 2

All blocks of a call attend to each other and to the committed past. Source: Rolling Forcing (arXiv 2509.25161) and its
published sampler. That sampler shrinks the window at the end of the video. Here blocks past the end are denoised too
and discarded, so that a video does not depend on its length.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from ..cache.cache import BlockView, KVCache
from ..errors import PackForcingError
from ..model.causal import CausalWan, TextKV
from ..queued import to_device
from .denoising import BlockDone, Denoising, StepDone, frame_timesteps, require_finite, without_noise
from .noise import NoiseSource
from .schedule import Schedule


class RollingBlocks:
    """Makes a block by rolling the window until the block is clean.

    When blocks were known before, the last of them must bring the noisy blocks that followed it, so that the render
    continues exactly. `StepDone` refers to the window's first block: the calls that fill the window are steps of block
    0, and each later block needs one more call, its last step.
    """

    def __init__(self, model: CausalWan, cache: KVCache, noise: NoiseSource, denoising: Denoising):
        self._model, self._cache, self._noise, self._schedule = model, cache, noise, denoising.schedule
        self._window: list[Tensor] = []
        self._last: BlockDone | None = None

    def passed(self, done: BlockDone) -> None:
        self._last = done

    def expect(self, block: int) -> None: ...

    def make(
        self, text: list[TextKV], block: int, behind_cut: bool
    ) -> Generator[StepDone, None, tuple[BlockDone, None]]:
        if self._last is not None:
            self._window, self._last = _in_flight(self._last, len(self._schedule)), None
        while True:
            self._window.append(self._noise(block + len(self._window), 0))
            view = self._cache.begin_block(blocks=len(self._window))
            window = [x.to(self._model.device) for x in self._window]
            clean = _predict(self._model, text, view, self._schedule, window)
            require_finite(torch.cat(clean, dim=2), block)
            yield StepDone(block, len(clean) - 1, len(self._schedule))
            self._window = _renoise(clean, self._noise, self._schedule, block)
            if len(clean) == len(self._schedule):
                in_flight = torch.cat(self._window, dim=2).cpu() if self._window else None
                return BlockDone(block, clean[0], selection=view.selection(), in_flight=in_flight), None


def _in_flight(last: BlockDone, steps: int) -> list[Tensor]:
    """The noisy blocks that followed the last known block."""
    if steps == 1:
        return []
    frames = last.latents.shape[2]
    if last.in_flight is None or last.in_flight.shape[2] != (steps - 1) * frames:
        raise PackForcingError(
            f"Block {last.block} is known, but not the {steps - 1} noisy blocks after it, without which "
            "a rolling render would continue differently. Pass the `in_flight` of the last known block's `BlockDone`, "
            "made with as many steps, or render from the start."
        )
    return list(last.in_flight.split(frames, dim=2))


def _predict(
    model: CausalWan, text: list[TextKV], view: BlockView, schedule: Schedule, window: list[Tensor]
) -> list[Tensor]:
    """One model call: x0 = x - sigma flow for each block of the window; the newest is at step 0."""
    steps = range(len(window) - 1, -1, -1)
    timesteps = [frame_timesteps(schedule.timesteps[step], x) for step, x in zip(steps, window, strict=True)]
    flow = model.flow(torch.cat(window, dim=2), torch.cat(timesteps, dim=1), text, view)
    flows = flow.split(window[0].shape[2], dim=2)
    return [without_noise(x, f, schedule.sigmas[step]) for step, x, f in zip(steps, window, flows, strict=True)]


def _renoise(clean: list[Tensor], noise: NoiseSource, schedule: Schedule, first: int) -> list[Tensor]:
    """x = (1 - sigma) x0 + sigma eps at the next step, for each block that has one; `first` is the first
    block's index.
    """
    window = []
    for offset, x0 in enumerate(clean):
        step = len(clean) - offset
        if step < len(schedule):
            sigma = schedule.sigmas[step]
            window.append((1 - sigma) * x0 + sigma * to_device(noise(first + offset, step), x0.device))
    return window
