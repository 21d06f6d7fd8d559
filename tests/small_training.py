"""Small parts for tests of the training stages: batches of made-up clips that can be learnt, an optimiser's step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from packforcing_core.geometry import compressed_grid
from packforcing_core.laboratory.training.data import LatentBatch
from packforcing_core.laboratory.training.learner import Learner, Optimisation
from packforcing_core.laboratory.training.loop import Stage
from tests.small import CONFIG, GRID, small_model

FRAMES_PER_BLOCK = 2
FAST = Optimisation(3e-3, warmup=0, final_rate=1.0)


def trainable_model(seed: int = 0):
    model = small_model(seed=seed)
    model.net.requires_grad_(True)
    return model


class SmallClips:
    """Clips that stand still: one random picture each, told by the context, with low-resolution latents to match."""

    def __init__(self, blocks: int = 5, batch: int = 2, seed: int = 0):
        self.blocks, self.batch, self.seed = blocks, batch, seed

    def __call__(self, step: int) -> LatentBatch:
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        frames = self.blocks * FRAMES_PER_BLOCK
        height, width = 2 * GRID[0], 2 * GRID[1]
        picture = torch.randn(self.batch, 16, 1, 1, 1, generator=generator)
        latents = picture.expand(-1, -1, frames, height, width).contiguous()
        times, rows, columns = compressed_grid(FRAMES_PER_BLOCK, height, width)
        low_res = picture.expand(-1, -1, times * self.blocks, 2 * rows, 2 * columns).contiguous()
        context = torch.randn(self.batch, 8, CONFIG.text_dim, generator=generator)
        return LatentBatch(latents, context, range(self.batch), low_res)


HELD_OUT = (1000, 1001)
"""Steps whose loss says what was learnt: the same draws before and after."""


def held_out_loss(stage: Stage, steps: tuple[int, ...] = HELD_OUT) -> float:
    return sum(stage.step(number).loss.item() for number in steps) / len(steps)


def learn(stage: Stage, steps: int) -> list[float]:
    """The losses of `steps` steps, each followed by its update."""
    learners = {name: Learner(net, stage.optimisation[name]) for name, net in stage.networks.items()}
    losses = []
    for number in range(steps):
        update = stage.step(number)
        for name in update.networks:
            learners[name].clear()
        update.loss.backward()
        for name in update.networks:
            learners[name].gather_gradients()
            learners[name].update(number, steps)
        losses.append(update.loss.item())
    return losses


def gradient_norm(network: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))


def difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()
