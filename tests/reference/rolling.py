"""The rolling rollout by brute force, window by window as the paper's sampler counts them.

Two of them: one keeps no cache at all and runs every window as one masked pass over all clean frames and the window,
for policies whose frames stay at their place in the video; the other keeps every key ever made without rotation,
concatenates what may be seen, rotates it from scratch and attends, for any clock.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .memory import plain_attention
from .wan import forward, grid_positions, rope


def window_blocks(window: int, steps: int) -> range:
    """Blocks of the window with that number; the i-th from the end is at step i. Nothing is cut off at the end."""
    return range(max(0, window - steps + 1), window + 1)


def seen_frames(first: int, current: int, sink: int, window_frames: int | None) -> list[int]:
    """Past frames that `current` frames from frame `first` on see: the sink, and of the newest what fits."""
    if window_frames is None:
        return list(range(first))
    room = max(0, window_frames - sink - current)
    return [frame for frame in range(first) if frame < sink or frame >= first - room]


def plain_rolling(predict, commit, noise, sigmas, blocks):
    """The rollout itself: `predict(block, noisy, steps)` -> flow of the blocks `noisy`, `commit(block, x0)`."""
    steps, noisy, clean = len(sigmas), {}, []
    for window in range(blocks + steps - 1):
        members = window_blocks(window, steps)
        noisy[window] = noise(window, 0)
        at = {block: window - block for block in members}
        flows = predict(members[0], [noisy[b] for b in members], [at[b] for b in members])
        for block, flow in zip(members, flows, strict=True):
            x0 = noisy[block] - sigmas[at[block]] * flow
            if at[block] == steps - 1:
                clean.append(x0)
                commit(block, x0)
            else:
                sigma = sigmas[at[block] + 1]
                noisy[block] = (1 - sigma) * x0 + sigma * noise(block, at[block] + 1)
    return clean


class MaskedPasses:
    """No cache: clean frames at timestep 0 and the window's blocks at theirs, in one pass under an explicit mask."""

    def __init__(self, net, config, context, timesteps, grid, frames_per_block, sink, window_frames):
        self.net, self.config, self.context, self.timesteps = net, config, context, timesteps
        self.grid, self.per_block, self.sink, self.window_frames = grid, frames_per_block, sink, window_frames
        self.clean = []

    def commit(self, block, x0):
        self.clean.append(x0)

    def predict(self, block, noisy, steps):
        first, current = block * self.per_block, len(noisy) * self.per_block
        frames = torch.cat((*self.clean, *noisy), dim=2)
        at = [0.0] * first + [self.timesteps[step] for step in steps for _ in range(self.per_block)]
        mask = torch.zeros(len(at), len(at), dtype=torch.bool)
        for start in range(0, first, self.per_block):  # A clean block as its commit saw it.
            stop = start + self.per_block
            mask[start:stop, seen_frames(start, self.per_block, self.sink, self.window_frames)] = True
            mask[start:stop, start:stop] = True
        mask[first:, seen_frames(first, current, self.sink, self.window_frames)] = True
        mask[first:, first:] = True
        n = self.grid[0] * self.grid[1]
        mask = mask.repeat_interleave(n, dim=0).repeat_interleave(n, dim=1)
        positions = grid_positions(list(range(len(at))), self.grid)
        flow = forward(self.net, self.config, frames, torch.tensor([at]), self.context, positions, mask)
        return flow[:, :, first:].split(self.per_block, dim=2)


class EveryKey:
    """A history (as a model pass holds it) that forgets nothing and looks at what the definition lets it see."""

    def __init__(self, layers, grid, sink, window_frames, gapless):
        self.grid, self.n = grid, grid[0] * grid[1]
        self.sink, self.window_frames, self.gapless = sink, window_frames, gapless
        self.past = [[] for _ in range(layers)]  # (layer) frames in order: (k, v) without rotation
        self.keeps = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past, current = self.past[layer], q.shape[1] // self.n
        first = len(past)
        frames = [*seen_frames(first, current, self.sink, self.window_frames), *range(first, first + current)]
        times = list(range(len(frames))) if self.gapless else frames
        keys = torch.cat([*(past[f][0] for f in frames if f < first), k], dim=1)
        values = torch.cat([*(past[f][1] for f in frames if f < first), v], dim=1)
        turned = rope(q, grid_positions(times[-current:], self.grid)), rope(keys, grid_positions(times, self.grid))
        if self.keeps:
            past.extend(zip(k.split(self.n, dim=1), v.split(self.n, dim=1), strict=True))
        return plain_attention(*turned, values)
