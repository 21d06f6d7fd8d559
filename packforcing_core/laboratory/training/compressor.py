"""Training stages of the compressor: together with the causal model by teacher forcing, or alone with a frozen model.

The paper trains both by Self-Forcing (`dmd`). These stages cost less: one pass over a clip of data, or, with the model
frozen, a few passes over its blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ...cache.config import Full, PackForcing, Policy
from ...cache.policies.packforcing import FULL_SPAN
from ...compressor.compressor import fuse
from ...compressor.high_res import HighRes
from ...compressor.low_res import low_res_latents
from ...errors import PackForcingError
from ...geometry import compressed_grid
from ...history import History
from ...model.causal import CausalWan, TextKV
from ...rope import GridRope
from ...sampler.schedule import Schedule
from ...vae.streaming import StreamingDecoder, encode
from ...vae.wan_vae import WanVAE
from .data import LatentBatch
from .flow import Batches, CausalStage, autocast, noised
from .functional_cache import (
    FunctionalCache,
    FunctionalView,
    SideBySide,
    functional_cache,
    teacher_forced_views,
)
from .learner import Optimisation
from .loop import Update
from .parts import seen_compressed
from .randomness import SampleNoise


@torch.no_grad()
def small_latents(
    batch: LatentBatch, blocks: Sequence[int], frames_per_block: int, vae: WanVAE | None
) -> dict[int, Tensor]:
    """Returns the low-resolution branch's latents [B, 16, g_t, 2 g_h, 2 g_w] of `blocks`, by block number. They come
    from the batch, or from the frozen `vae`, which decodes the clip up to the last of the blocks. Raises
    PackForcingError if there is neither.
    """
    if batch.low_res is not None:
        times = compressed_grid(frames_per_block, *batch.latents.shape[3:])[0]
        return {block: batch.low_res[:, :, block * times : (block + 1) * times] for block in blocks}
    if vae is None:
        raise PackForcingError(
            "The batch has no low-resolution latents and the stage has no VAE to compute them. Give the stage a VAE, "
            "or encode the clips again into a folder that holds them."
        )
    decoder, small = StreamingDecoder(vae), {}
    for block in range(max(blocks, default=-1) + 1):
        latents = block_of(batch.latents, block, frames_per_block)
        video = decoder.push(latents)
        if block in blocks:
            small[block] = low_res_latents(partial(encode, vae), video, latents.shape, block == 0)
    return small


def block_of(latents: Tensor, block: int, frames_per_block: int) -> Tensor:
    """Returns block `block` of latents [B, 16, F, h, w]."""
    return latents[:, :, block * frames_per_block : (block + 1) * frames_per_block]


def compressed_tokens(
    model: CausalWan,
    high_res: HighRes | None,
    latents: Tensor,
    small: dict[int, Tensor],
    frames_per_block: int,
) -> dict[int, Tensor]:
    """Returns the hidden tokens [B, N_c, D] of the blocks in `small`, by block number, computed from the clip's
    `latents` and the low-resolution latents `small`.
    """
    return {
        block: fuse(model, high_res, block_of(latents, block, frames_per_block), low_res)
        for block, low_res in small.items()
    }


def compressed_views(
    model: CausalWan,
    high_res: HighRes | None,
    rope: GridRope,
    frames_per_block: int,
    vae: WanVAE | None,
    policy: Policy,
    text: list[TextKV],
    batch: LatentBatch,
) -> list[FunctionalView]:
    """Returns the view of every block of the clean clip under `policy`. Gradients flow through its compressed
    blocks.
    """
    cache, x0 = functional_cache(model, rope, policy, frames_per_block), batch.latents.to(model.device)
    twins = seen_compressed(cache.partitions, x0.shape[2] // frames_per_block)
    small = small_latents(batch, twins, frames_per_block, vae)
    tokens = compressed_tokens(model, high_res, x0, small, frames_per_block)
    return teacher_forced_views(model, text, cache, x0, tokens.__getitem__)


def twin_memories(frames_per_block: int) -> tuple[Policy, ...]:
    """Returns the policies that teacher forcing with compressed blocks cycles through: the full history, the paper's
    policy, and two with so few frames at full resolution that a short clip has several compressed blocks, and more of
    its blocks see one.
    """
    short = PackForcing(sink_frames=frames_per_block, recent_frames=frames_per_block, mid_span=FULL_SPAN)
    return Full(), PackForcing(mid_span=FULL_SPAN), short, replace(short, sink_frames=0)


@dataclass(kw_only=True)
class TwinsStage(CausalStage):
    """Teacher forcing that trains the model and the compressor together, with the PackForcing policy.

    One pass holds the clean clip, the compressed forms of the blocks that reach the mid, and the noisy clip; gradients
    flow through all of it. It costs far less than Self-Forcing, but does not train on the model's own outputs. Without
    `optimisation_of_compressor` the compressor is frozen. Without `high_res` it is the low-resolution branch alone.
    """

    high_res: HighRes | None = None
    optimisation_of_compressor: Optimisation | None = None
    vae: WanVAE | None = None
    memories: Sequence[Policy] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memories = self.memories or twin_memories(self.frames_per_block)
        if self.high_res is not None and self.optimisation_of_compressor is None:
            self.high_res.requires_grad_(False)

    @property
    def networks(self) -> dict[str, nn.Module]:
        found = super().networks
        if self.high_res is not None and self.optimisation_of_compressor is not None:
            found["compressor"] = self.high_res
        return found

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        found = super().optimisation
        if self.high_res is not None and self.optimisation_of_compressor is not None:
            found["compressor"] = self.optimisation_of_compressor
        return found

    def flow(self, history: Tensor, x: Tensor, sigma: Tensor, batch: LatentBatch, policy: Policy) -> Tensor:
        plan, seen = self.plan(policy, history.shape[2] // self.frames_per_block)
        small = small_latents(batch, plan.twins, self.frames_per_block, self.vae)
        twins = compressed_tokens(self.model, self.high_res, history, small, self.frames_per_block)
        before = padded(self.model.embed(history), twins.values(), plan.padding_tokens)
        clean = sigma.new_zeros(len(sigma), history.shape[2] + plan.twin_frames)
        timesteps = torch.cat((clean, 1000 * sigma), dim=1)
        return self.model.flow_behind(before, x, timesteps, self.model.encode_text(batch.context), seen)


def padded(clean: Tensor, twins: Iterable[Tensor], padding: int) -> Tensor:
    """Concatenates [clean | compressed blocks | `padding` zero tokens], each [B, L, D]."""
    return torch.cat((clean, *twins, clean.new_zeros(clean.shape[0], padding, clean.shape[2])), dim=1)


@dataclass
class CompressorStage:
    """Trains the compressor with the model frozen: every block that sees compressed blocks is trained to have the same
    flow as with the full history.

    The clean clip is committed twice without a gradient, once under each policy. Then the blocks that see compressed
    blocks run at the noise levels of a few-step sampler. Only these blocks and the compressed blocks' own passes need a
    gradient, so Wan 1.3B can be trained on one consumer GPU. `layer_weight` adds a loss on the attention outputs of
    every layer.
    """

    model: CausalWan
    high_res: HighRes
    batches: Batches
    rope: GridRope
    optimisation_of_compressor: Optimisation
    frames_per_block: int = 4
    seed: int = 0
    vae: WanVAE | None = None
    sigmas: Sequence[float] = Schedule.warped((1000.0, 750.0, 500.0, 250.0), shift=5.0).sigmas
    memories: Sequence[Policy] = (PackForcing(mid_span=FULL_SPAN),)
    target: Policy = field(default_factory=Full)
    layer_weight: float = 0.0
    precision: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        self.model.net.requires_grad_(False)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"compressor": self.high_res}

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        return {"compressor": self.optimisation_of_compressor}

    def step(self, number: int) -> Update:
        return self.ordinary(number, self.memories[number % len(self.memories)])

    def ordinary(self, number: int, memory: Policy) -> Update:
        """Returns the update from the clips of step `number` in their own order, under `memory`."""
        batch = self.batches(number)
        random, device = SampleNoise(self.seed, number, batch.indices), self.model.device
        x0 = batch.latents.to(device)
        with autocast(device, self.precision):
            with torch.no_grad():
                text = self.model.encode_text(batch.context)
                targets = teacher_forced_views(self.model, text, self._cache(self.target), x0)
            students = self.views(memory, text, batch)
            blocks = [block for block, view in enumerate(students) if view.window.mid_positions]
            if not blocks:
                raise PackForcingError(
                    f"No block of a clip of {x0.shape[2]} latent frames sees a compressed block under policy "
                    f"'{memory.name}'. Train on longer clips, or lower sink_frames or recent_frames."
                )
            x0 = torch.cat([block_of(x0, block, self.frames_per_block) for block in blocks], dim=2)
            error, figures = self.error(x0, text, [targets[b] for b in blocks], [students[b] for b in blocks], random)
        return Update("compressor", error, figures)

    def error(
        self,
        x0: Tensor,
        text: list[TextKV],
        targets: Sequence[FunctionalView],
        students: Sequence[FunctionalView],
        random: SampleNoise,
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the mean squared error between the flow of the blocks of x0 [B, 16, F, h, w] with the views
        `students` and that with the views `targets`, at random noise levels, and figures for the log.
        """
        sigma = torch.tensor(self.sigmas)[random.integers(len(self.sigmas), (len(students),))]
        sigma = sigma.repeat_interleave(self.frames_per_block, dim=1).to(x0.device)
        x = noised(x0, sigma, random.normal(x0.shape[1:]).to(x0.device))
        with torch.no_grad():
            wanted, wanted_layers = self._flow(x, sigma, text, targets)
        flow, layers = self._flow(x, sigma, text, students)
        error = (flow - wanted).square().mean()
        figures = {"relative_error": (error / wanted.square().mean()).item()}
        if self.layer_weight:
            error = error + self.layer_weight * relative_error(layers, wanted_layers)
        return error, figures

    def views(self, policy: Policy, text: list[TextKV], batch: LatentBatch) -> list[FunctionalView]:
        """Returns the view of every block of the clean clip under `policy`. Gradients flow through its compressed
        blocks.
        """
        given = self.model, self.high_res, self.rope, self.frames_per_block, self.vae
        return compressed_views(*given, policy, text, batch)

    def _cache(self, policy: Policy) -> FunctionalCache:
        return functional_cache(self.model, self.rope, policy, self.frames_per_block)

    def _flow(
        self, x: Tensor, sigma: Tensor, text: list[TextKV], views: Sequence[FunctionalView]
    ) -> tuple[Tensor, list[Tensor]]:
        history = Recorded(SideBySide(views))
        return self.model.flow(x, 1000 * sigma, text, history), history.outputs


class Recorded:
    """A history that records what it returned: the attention output of every layer."""

    def __init__(self, history: History):
        self._history = history
        self.outputs: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.outputs.append(self._history.attend(layer, q, k, v))
        return self.outputs[-1]


def relative_error(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Returns the mean over the layers of the squared error divided by the mean square of the wanted output."""
    errors = [
        (own.float() - other.float()).square().mean() / other.float().square().mean()
        for own, other in zip(given, wanted, strict=True)
    ]
    return torch.stack(errors).mean()
