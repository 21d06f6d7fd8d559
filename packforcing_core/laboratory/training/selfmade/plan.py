"""Estimates what a run needs before it starts: device memory for generating clips and for training, and disk space.

The peak of a training step is counted on the meta device, where tensors have shapes but no storage. It is counted with
five and with six layers and extrapolated linearly to all layers. With fewer layers the peak may occur at a point whose
memory does not depend on their number.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ....compressor.high_res import Fusion, HighRes
from ....errors import PackForcingError
from ....geometry import GB, size_text
from ....model.config import WanConfig
from ....model.ops import TorchOps, build_on_meta
from ....model.wan import Wan
from ....recipe.plan import parameter_count, plan_render
from ....vae.config import VAEConfig
from ....vae.decode_bytes import vae_bytes, weight_bytes
from ..learner import Optimisation
from ..live_bytes import LiveBytes
from ..memory import trained_bytes
from ..wan import TrainedWan
from .base import Base
from .clip_layouts import MOST_BETWEEN, Layout, Sample, memory_blocks
from .clips import clip_bytes
from .stage import flow_error

COUNTED_LAYERS = 5, 6
PROMPT_TOKENS = 48
"""Assumed number of text tokens per prompt, for the estimate of the disk space."""


@dataclass(frozen=True)
class Ways:
    """How a step is computed: the clips per pass, the noise levels per clip, whether activations are recomputed, and
    the fusion of the compressor's branches.
    """

    at_once: int = 1
    levels: int = 2
    recompute: bool = True
    fusion: Fusion = "add"


class _Kernel(torch.autograd.Function):
    """A stand-in for attention that computes nothing and saves what fused kernels save for the backward pass: q, k, v,
    the output, and the log-sum-exp of each query.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def build_meta_model(config: WanConfig, dtype: torch.dtype, recompute: bool) -> TrainedWan:
    """Builds the model on the meta device as training loads it: frozen, its patch embedding in float32."""
    net = build_on_meta(lambda: Wan(config, TorchOps)).to(dtype).requires_grad_(False)
    net.patch_embedding.float()
    return TrainedWan(net, config, recompute=recompute, dtype=dtype, device="meta", attention=_Kernel.apply)


def longest_layout(base: Base) -> Layout:
    sink, newest = memory_blocks(base.asked, base.clip.frames_per_block)
    return Layout(base.clip.blocks - 1, newest, sink, MOST_BETWEEN)


def longest_sample(base: Base, at_once: int) -> Sample:
    """Returns a sample of the longest layout on the meta device."""
    clip, layout = base.clip, longest_layout(base)
    times, rows, columns = clip.compressed_grid

    def latents(frames: int, height: int, width: int) -> Tensor:
        return torch.empty(at_once, 16, frames, height, width, device="meta")

    size = clip.latent_height, clip.latent_width
    return Sample(
        latents(layout.length * clip.frames_per_block, *size),
        latents(layout.length * times, 2 * rows, 2 * columns),
        latents((layout.target - layout.first) * clip.frames_per_block, *size),
        latents(clip.frames_per_block, *size),
        [""] * at_once,
    )


def counted(base: Base, dtype: torch.dtype, ways: Ways, layers: int | None = None, learns: bool = True) -> int:
    """Returns the peak bytes of one group's forward and backward pass, without weights, optimiser moments and averaged
    weights, counted on the meta device. With `learns` False, returns those of one forward pass of the score.
    """
    config = replace(base.config, num_layers=layers or base.config.num_layers)
    model = build_meta_model(config, dtype, ways.recompute)
    high_res = build_on_meta(lambda: HighRes(config.dim, fusion=ways.fusion))
    sample, shape = longest_sample(base, ways.at_once), base.clip.block_shape[1:]
    text = torch.empty(ways.at_once, config.text_len, config.text_dim, device="meta")
    levels = torch.full((ways.at_once, ways.levels), 0.5)
    noise = torch.empty(ways.at_once, ways.levels, *shape, device="meta")
    memory = replace(base.asked, selector="recency")  # meta tensors have no values to select by; the memory is the same
    parts = [*model.net.parameters(), *high_res.parameters()]
    with LiveBytes(parts) as live, torch.set_grad_enabled(learns):
        asked = model, high_res, base, memory, sample, lambda _: text, levels, noise
        found = flow_error(*asked, longest_layout(base).sought if learns else range(0))
        if learns:
            torch.autograd.grad(found.error + found.selection, list(high_res.parameters()))
    return live.peak


def planned(base: Base, dtype: torch.dtype, ways: Ways, learns: bool = True) -> int:
    """Returns `counted` for the full number of layers, extrapolated from two small ones."""
    if base.config.num_layers <= COUNTED_LAYERS[1]:
        return counted(base, dtype, ways, learns=learns)
    few, more = (counted(base, dtype, ways, layers, learns) for layers in COUNTED_LAYERS)
    return few + (base.config.num_layers - COUNTED_LAYERS[0]) * (more - few)


@dataclass(frozen=True)
class SelfmadePlan:
    """Peak bytes on the device of the three stages, their parts as `rows` of (name, bytes), and the bytes on `disk`."""

    rollout: int
    step: int
    score: int
    disk: int
    rows: tuple[tuple[str, int], ...]

    @property
    def peak(self) -> int:
        return max(self.rollout, self.step, self.score)

    def lines(self) -> Iterator[str]:
        for name, size in self.rows:
            yield f"  {name:<54} {size / GB:8.2f} GB"
        yield f"at most {size_text(self.peak)} on the device; about {size_text(self.disk)} on disk"


def plan_run(
    base: Base,
    vae: VAEConfig,
    optimisation: Optimisation,
    dtype: torch.dtype,
    ways: Ways,
    clips: int,
    prompts: int,
    device: torch.device | str = "cpu",
) -> SelfmadePlan:
    """Plans a run with `clips` clips and `prompts` prompts on `device`."""
    clip = base.clip
    rolling = plan_render(base.config, base.recipe(0), dtype).peak_bytes + weight_bytes(vae, dtype)
    weights = parameter_count(base.config) * dtype.itemsize
    # The KV cache is freed before a clip is decoded.
    decoding = weights + vae_bytes(vae, clip.height, clip.width, clip.frames_per_push, dtype, device)
    branch = build_on_meta(lambda: HighRes(base.config.dim, fusion=ways.fusion))
    trained = trained_bytes(branch, optimisation)
    learnt = trained.total - trained.gathered  # with the accumulated gradients; those of one group are in `counted`
    activations = planned(base, dtype, ways)
    asked = planned(base, dtype, replace(ways, at_once=1), learns=False)
    kept = trained.total - trained.gathered - trained.gradients
    rows = (
        ("generating clips: weights, cache, a pass", rolling),
        ("generating clips: weights, decoding", decoding),
        ("training: the model's weights", weights),
        ("training: the compressor, gradients, moments, average", learnt),
        ("training: both pasts and activations, counted", activations),
        ("scoring: both pasts, counted", asked),
    )
    numbers = sum(p.numel() for p in branch.parameters())
    texts = 2 * prompts * PROMPT_TOKENS * base.config.text_dim
    disk = clips * clip_bytes(base) + texts + (2 * 16 + 2) * numbers
    score = weights + kept + trained.weights + asked  # the averaged weights are scored in a second branch
    return SelfmadePlan(max(rolling, decoding), weights + learnt + activations, score, disk, rows)


def require_disk(folder: Path, needed: int) -> None:
    """Raises PackForcingError if the disk of `folder` has less free space than `needed` bytes minus what `folder`
    already holds, or if it is not writable.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    there = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()) if folder.exists() else 0
    free = shutil.disk_usage(existing).free
    if needed - there > free:
        raise PackForcingError(
            f"{folder} needs about {size_text(needed - there)} more, but its disk has {size_text(free)} left. Choose "
            "another --folder, or fewer --clips."
        )
    if not os.access(existing, os.W_OK):
        raise PackForcingError(f"{existing} cannot be written to. Choose another --folder.")


def require_vram(plan: SelfmadePlan, available: int, remedies: Iterator[tuple[str, SelfmadePlan]]) -> None:
    """Raises PackForcingError if the plan's peak exceeds `available` bytes. The message names the first of `remedies`
    that fits.
    """
    if plan.peak <= available:
        return
    fitting = next((option for option, other in remedies if other.peak <= available), None)
    advice = f"With {fitting} it fits." if fitting else "No option makes it fit: take a larger card."
    raise PackForcingError(f"This needs {size_text(plan.peak)}, but the device has {size_text(available)}. {advice}")
