"""Training of the compressor: with the causal model by teacher forcing, or alone against the full history.

Where the paper trains both by Self-Forcing (`dmd`), these are the affordable ways: one pass over a clip of data, or,
with the model frozen, a few passes over its blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..cache.config import FULL_SPAN, Full, PackForcing, Policy
from ..compressor.compressor import fuse
from ..compressor.high_res import HighRes
from ..compressor.low_res import low_res_latents
from ..errors import PackForcingError
from ..geometry import compressed_grid
from ..model.causal import CausalWan
from ..vae.streaming import StreamingDecoder, encode
from ..vae.wan_vae import WanVAE
from .data import LatentBatch
from .flow import CausalStage
from .loop import Optimisation


@torch.no_grad()
def small_latents(
    batch: LatentBatch, blocks: Sequence[int], frames_per_block: int, vae: WanVAE | None
) -> dict[int, Tensor]:
    """The low-resolution branch's latents [B, 16, g_t, 2 g_h, 2 g_w] of `blocks`: the batch's own, or made by the
    frozen `vae`, which decodes the clip up to the last of them. PackForcingError where there is neither.
    """
    if batch.low_res is not None:
        times = compressed_grid(frames_per_block, *batch.latents.shape[3:])[0]
        return {block: batch.low_res[:, :, block * times : (block + 1) * times] for block in blocks}
    if vae is None:
        raise PackForcingError(
            "The batch has no low-resolution latents and the stage no VAE to make them with. Give the stage the VAE, "
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
    """Block `block` of latents [B, 16, F, h, w]."""
    return latents[:, :, block * frames_per_block : (block + 1) * frames_per_block]


def twin_tokens(
    model: CausalWan,
    high_res: HighRes | None,
    latents: Tensor,
    small: dict[int, Tensor],
    frames_per_block: int,
) -> dict[int, Tensor]:
    """Hidden tokens [B, N_c, D] of the blocks of `small`, made of the clip's `latents` and those."""
    return {
        block: fuse(model, high_res, block_of(latents, block, frames_per_block), low_res)
        for block, low_res in small.items()
    }


def twin_memories(frames_per_block: int) -> tuple[Policy, ...]:
    """What teacher forcing with twins lets blocks see, in turn: the full history, the paper's memory, and one with so
    few frames at full resolution that a short clip has several twins.
    """
    short = PackForcing(sink_frames=frames_per_block, recent_frames=frames_per_block, mid_span=FULL_SPAN)
    return Full(), PackForcing(mid_span=FULL_SPAN), short


@dataclass(kw_only=True)
class TwinsStage(CausalStage):
    """Teacher forcing in which model and compressor learn together, with the PackForcing memory in view.

    One pass holds the clean clip, the twins of the blocks that reach the mid, and the noisy clip; gradients flow
    through all of it. Far cheaper than Self-Forcing, and without its training on what the model itself makes.
    """

    high_res: HighRes
    optimisation_of_compressor: Optimisation
    vae: WanVAE | None = None
    memories: Sequence[Policy] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memories = self.memories or twin_memories(self.frames_per_block)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"causal": self.model.net, "compressor": self.high_res}

    @property
    def optimisation(self) -> dict[str, Optimisation]:
        return {"causal": self.optimisation_of_model, "compressor": self.optimisation_of_compressor}

    def flow(self, history: Tensor, x: Tensor, sigma: Tensor, batch: LatentBatch, policy: Policy) -> Tensor:
        plan, seen = self.plan(policy, x.shape[2] // self.frames_per_block)
        small = small_latents(batch, plan.twins, self.frames_per_block, self.vae)
        twins = twin_tokens(self.model, self.high_res, history, small, self.frames_per_block).values()
        before = padded(self.model.embed(history), twins, plan.padding_tokens)
        clean = sigma.new_zeros(len(sigma), history.shape[2] + plan.twin_frames)
        timesteps = torch.cat((clean, 1000 * sigma), dim=1)
        return self.model.flow_behind(before, x, timesteps, self.model.encode_text(batch.context), seen)


def padded(clean: Tensor, twins: Iterable[Tensor], padding: int) -> Tensor:
    """[clean | twins | `padding` tokens of zeros], each [B, L, D]."""
    return torch.cat((clean, *twins, clean.new_zeros(clean.shape[0], padding, clean.shape[2])), dim=1)
