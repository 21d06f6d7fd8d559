"""The training stage of a compressor on self-generated clips: with the PackForcing policy the model's flow is trained
to match its flow given the full history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ....cache.config import Full, Policy
from ....compressor.high_res import HighRes
from ....geometry import compressed_grid
from ....model.causal import CausalWan, TextKV
from ....sampler.rollout import commit_block
from ..compressor import block_of, compressed_tokens
from ..flow import noised
from ..functional_cache import FunctionalCache, FunctionalView, SideBySide, commit_compressed
from ..layouts import selection_loss
from ..learner import Optimisation
from ..loop import Update
from ..parts import seen_compressed
from ..randomness import step_generator
from ..wan import TrainedWan
from .base import Base
from .clip_layouts import Sample, arranged, drawn_layout
from .clips import Clips
from .texts import Texts


class Asked(NamedTuple):
    """The flow's mean squared `error`, the mean square of the `wanted` flow, and the `selection` loss."""

    error: Tensor
    wanted: Tensor
    selection: Tensor


@dataclass
class SelfmadeStage:
    """Each step trains on `batch` clips with indices from `training`. Groups of `at_once` clips share a layout and run
    in one pass.

    The gradient of a group is computed before the next group's pass begins, so peak memory depends on `at_once` and not
    on `batch`. The target block is evaluated at `levels` noise levels with one cache, because filling the cache costs
    most. What a step draws depends only on the seed, the step and the group.
    """

    model: CausalWan
    high_res: HighRes
    clips: Clips
    texts: Texts
    training: range
    optimisation_of_compressor: Optimisation
    batch: int = 4
    at_once: int = 1
    levels: int = 2
    selection_weight: float = 0.01

    def __post_init__(self) -> None:
        self.model.net.requires_grad_(False)

    @property
    def base(self) -> Base:
        return self.clips.base

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"compressor": self.high_res}

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        return {"compressor": self.optimisation_of_compressor}

    def step(self, number: int) -> Update:
        groups = -(-self.batch // self.at_once)
        parameters = [p for p in self.high_res.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in parameters]
        error = wanted = selection = 0.0
        for group in range(groups):
            asked = self.group_error(number, group)
            total = (asked.error + self.selection_weight * asked.selection) / groups
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            for gradient, part in zip(gradients, found, strict=True):
                if part is not None:
                    gradient.add_(part)
            del found, part  # Frees them before the next group's activations.
            error += asked.error.item() / groups
            wanted += asked.wanted.item() / groups
            selection += asked.selection.item() / groups
        figures = {"relative_error": error / wanted, "selection": selection}
        loss = error + self.selection_weight * selection
        return Update("compressor", gathered(loss, gradients, parameters), figures)

    def group_error(self, number: int, group: int) -> Asked:
        """Returns the losses of group `group` in step `number`, with their autograd graph."""
        random = step_generator(self.clips.seed, "learn", number, group)
        memory = self.base.learnt[number % len(self.base.learnt)]
        clip = self.base.clip
        layout = drawn_layout(random, memory, clip.blocks, clip.frames_per_block)
        chosen = [self._drawn(random) for _ in range(self.at_once)]
        others = [self._other(random, index) for index in chosen]
        clips, fillers = ([self.clips.read(i) for i in row] for row in (chosen, others))
        sample = arranged(clips, fillers, layout, clip.frames_per_block)
        sigmas = torch.tensor(self.base.denoising.schedule.sigmas)
        levels = sigmas[torch.randint(len(sigmas), (self.at_once, self.levels), generator=random)]
        noise = torch.randn(self.at_once, self.levels, *sample.x0.shape[1:], generator=random)
        asked = self.model, self.high_res, self.base, memory, sample, self.texts, levels, noise
        return flow_error(*asked, layout.sought)

    def _drawn(self, random: torch.Generator) -> int:
        return self.training[int(torch.randint(len(self.training), (), generator=random))]

    def _other(self, random: torch.Generator, index: int) -> int:
        """Returns the index of the clip with the same prompt, or of any clip, with probability 1/2 each."""
        twin, any_other = index ^ 1, self._drawn(random)
        return twin if twin in self.training and torch.rand((), generator=random) < 0.5 else any_other


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer * gradient for gradient in ctx.gradients)


def gathered(value: float, gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Returns a loss of the given value whose backward pass assigns the precomputed `gradients` to `parameters`."""
    return _Gathered.apply(gradients[0].new_tensor(value), gradients, *parameters)


def flow_error(
    model: CausalWan,
    high_res: HighRes | None,
    base: Base,
    memory: Policy,
    sample: Sample,
    texts: Callable[[Sequence[str]], Tensor],
    levels: Tensor,
    noise: Tensor,
    sought: range = range(0),
) -> Asked:
    """Compares the flow of x0 under the policy `memory` with its flow given the full short clip, at noise levels [B, N]
    with noise [B, N, 16, T, h, w]. `sought` are the laid-out blocks that the layers should select, if any.

    Only one of the two caches is in memory at a time. Without `high_res` the compressed blocks are zero-shot.
    """
    device, count = model.device, levels.shape[1]
    frames = base.clip.frames_per_block
    sigma = levels.repeat_interleave(frames, dim=1).to(device)
    x0 = sample.x0.repeat(1, 1, count, 1, 1).to(device)
    x = noised(x0, sigma, noise.transpose(1, 2).flatten(2, 3).to(device))
    rope, recompute = base.rope(device), isinstance(model, TrainedWan) and model.recompute

    def flow(policy: Policy, clean: Tensor, tokens: Callable[[int], Tensor] | None) -> tuple[Tensor, FunctionalView]:
        partitions = policy.partitions(frames)
        cache = FunctionalCache(partitions, model.config.num_layers, rope, model.attention, recompute)
        view = last_view(model, text, cache, clean.to(device).split(frames, dim=2), tokens)
        del cache
        return model.flow(x, 1000 * sigma, text, SideBySide([view] * count)), view

    with torch.no_grad():
        text = model.encode_text(texts(sample.prompts))
        wanted = flow(Full(), sample.short, None)[0]  # The view holds the whole cache and is freed at once.
    tokens = compressed_blocks(model, high_res, base, memory, sample)
    given, view = flow(memory, sample.long, tokens.__getitem__)
    seeks = view.mean_queries and any(block in sought for block in view.twins)
    selection = selection_loss(view, sought)[0] if seeks else given.new_zeros(())
    return Asked((given - wanted).square().mean(), wanted.square().mean(), selection)


def compressed_blocks(
    model: CausalWan, high_res: HighRes | None, base: Base, memory: Policy, sample: Sample
) -> dict[int, Tensor]:
    """Returns the hidden tokens of every block of the sample that is compressed under `memory`, by block number."""
    frames = base.clip.frames_per_block
    times = compressed_grid(frames, *sample.long.shape[3:])[0]
    blocks = seen_compressed(memory.partitions(frames), sample.long.shape[2] // frames + 1)
    small = {block: block_of(sample.low_res, block, times) for block in blocks}
    return compressed_tokens(model, high_res, sample.long, small, frames)


def last_view(
    model: CausalWan,
    text: list[TextKV],
    cache: FunctionalCache,
    blocks: Iterable[Tensor],
    tokens: Callable[[int], Tensor] | None,
) -> FunctionalView:
    """Commits the clean `blocks` and returns the view of the block after them. Earlier views are dropped, since each
    holds on to all keys and values that it saw. Compressed blocks, made from the hidden `tokens(block)`, keep their
    autograd graph where gradients are enabled.
    """
    for block in blocks:
        view = cache.begin_block()
        with torch.no_grad():
            commit_block(model, text, cache, view, block, 0.0)
        del view
        if tokens is not None and cache.due_block is not None:
            commit_compressed(model, text, cache, tokens(cache.due_block))
    return cache.begin_block()
