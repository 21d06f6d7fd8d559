"""The rolling rollout: as many blocks as denoising steps in one model call, each one step noisier than the one before.

    call 0    0                     blocks 0, 1, 2, ... at their steps, of 3
    call 1    1 0
    call 2    2 1 0                 block 0 is clean: committed, yielded
    call 3      2 1 0               block 1
    call 4        2 1 0             block 2

All blocks of a call see each other and the committed past. Source: Rolling Forcing (arXiv 2509.25161) and its published
sampler, which lets the window shrink at the end of the video; here blocks past the end are rolled too and thrown away,
so that a video does not depend on where it ends.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..cache.cache import BlockView, KVCache
from ..errors import PackForcingError
from ..model.causal import CausalWan, TextKV
from .noise import NoiseSource
from .rollout import (
    BlockDone,
    Denoising,
    Event,
    StepDone,
    Twins,
    commit_block,
    commit_due_twin,
    frame_timesteps,
    require_finite,
    require_parts,
)
from .schedule import Schedule


def rolling_rollout(
    model: CausalWan,
    text: list[TextKV],
    cache: KVCache,
    noise: NoiseSource,
    denoising: Denoising,
    blocks: int,
    known: Sequence[BlockDone] = (),
    twins: Twins | None = None,
    stop: int | None = None,
) -> Iterator[Event]:
    """Latent blocks 0..blocks-1. Blocks in `known` are only committed again; the last of them must bring the blocks
    that were in flight behind it, from which the render goes on exactly.

    `StepDone` tells of the window's first block: the calls that fill the window are steps of block 0, and each later
    block needs one more call, its last step. Begins, stops and raises PackForcingError as `rollout` does.
    """
    require_parts(cache.partitions, known, known, twins)
    window = _in_flight(known[-1], len(denoising.schedule)) if 0 < len(known) < blocks else []
    for block in range(cache.next_block, blocks if stop is None else stop):
        if block < len(known):
            made = replace(known[block], reused=True)
        else:
            made, window = yield from _next_block(model, text, cache, noise, denoising.schedule, block, window)
        video = twins.decoder.push(made.latents) if twins and twins.decoder else None
        if block + 1 < blocks:
            view = cache.begin_block(made.selection or None)
            commit_block(model, text, cache, view, made.latents, denoising.context_noise)
            if twins and cache.mid:
                twins.waiting[block] = made.latents, video
                commit_due_twin(model, text, cache, twins.compressor, twins.waiting)
        yield replace(made, video=video)


def _in_flight(last: BlockDone, steps: int) -> list[Tensor]:
    """The blocks that were in flight behind the last known block."""
    if steps == 1:
        return []
    frames = last.latents.shape[2]
    if last.in_flight is None or last.in_flight.shape[2] != (steps - 1) * frames:
        raise PackForcingError(
            f"Block {last.block} is known, but not the {steps - 1} blocks that were in flight behind it, without which "
            "a rolling render would go on differently. Give the `in_flight` of the last known block's `BlockDone`, "
            "made with as many steps, or render from the start."
        )
    return list(last.in_flight.split(frames, dim=2))


def _next_block(
    model: CausalWan,
    text: list[TextKV],
    cache: KVCache,
    noise: NoiseSource,
    schedule: Schedule,
    block: int,
    window: list[Tensor],
) -> Generator[StepDone, None, tuple[BlockDone, list[Tensor]]]:
    """Rolls on until `block` is clean; `window` are the noisy blocks from `block` on. Returns it and the rest."""
    while True:
        window = [*window, noise(block + len(window), 0)]
        view = cache.begin_block(blocks=len(window))
        clean = _predict(model, text, view, schedule, [x.to(model.device) for x in window])
        require_finite(torch.cat(clean, dim=2), block)
        yield StepDone(block, len(window) - 1, len(schedule))
        window = _renoise(clean, noise, schedule, block)
        if len(clean) == len(schedule):
            in_flight = torch.cat(window, dim=2).cpu() if window else None
            return BlockDone(block, clean[0].cpu(), selection=view.selection(), in_flight=in_flight), window


def _predict(
    model: CausalWan, text: list[TextKV], view: BlockView, schedule: Schedule, window: list[Tensor]
) -> list[Tensor]:
    """One model call: x0 = x - sigma flow of every block of the window, of which the newest is at step 0."""
    steps = range(len(window) - 1, -1, -1)
    timesteps = [frame_timesteps(schedule.timesteps[step], x) for step, x in zip(steps, window, strict=True)]
    flow = model.flow(torch.cat(window, dim=2), torch.cat(timesteps, dim=1), text, view)
    flows = flow.split(window[0].shape[2], dim=2)
    return [
        (x.double() - schedule.sigmas[step] * f.double()).float()
        for step, x, f in zip(steps, window, flows, strict=True)
    ]


def _renoise(clean: list[Tensor], noise: NoiseSource, schedule: Schedule, first: int) -> list[Tensor]:
    """x = (1 - sigma) x0 + sigma eps at the next step of every block that has one; `first` is the first block's
    number.
    """
    window = []
    for offset, x0 in enumerate(clean):
        step = len(clean) - offset
        if step < len(schedule):
            sigma = schedule.sigmas[step]
            window.append((1 - sigma) * x0 + sigma * noise(first + offset, step).to(x0.device))
    return window
