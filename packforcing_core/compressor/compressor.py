"""Both branches together: from a block's latents and decoded frames to its compressed tokens."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..errors import PackForcingError
from ..geometry import LATENT_CHANNELS
from ..model.causal import CausalWan
from .high_res import HighRes
from .low_res import Encode, low_res_latents

# "low_res" is zero-shot, "both" is trained, "high_res" is an ablation that needs no frames.
Branches = Literal["both", "high_res", "low_res"]


class Compressor:
    """Makes hidden tokens of the model's width from a clean block, like the model's patch embedding.

        compressor = Compressor(model, "low_res", encode=partial(encode, vae))
        tokens = compressor.tokens(latents, video, first_block=False)

    `high_res` and `encode` are required by the branches that use them. The patch embedding is the model's own module in
    `model.net`, so a host's handling of its weights applies. The high-resolution branch computes in the dtype of its
    weights. Raises PackForcingError if a part is missing or was made for another width.
    """

    def __init__(
        self,
        model: CausalWan,
        branches: Branches = "both",
        *,
        high_res: HighRes | None = None,
        encode: Encode | None = None,
    ) -> None:
        if branches not in get_args(Branches):
            raise PackForcingError(
                f"Got compressor branches {branches!r}; expected one of {', '.join(get_args(Branches))}."
            )
        self.model = model
        self.branches = branches
        self.high_res = None if branches == "low_res" else _require_high_res(high_res, branches, model.config.dim)
        self.encode = None if branches == "high_res" else _require_encode(encode, branches)

    @property
    def needs_frames(self) -> bool:
        """Whether `tokens` requires the block's decoded frames, and so a VAE."""
        return self.encode is not None

    def tokens(self, latents: Tensor, video: Tensor | None, first_block: bool) -> Tensor:
        """[B, N_c, D] in the model's dtype, in the order time, rows, columns of `geometry.compressed_grid`.

        `latents` [B, 16, T, h, w] are clean and in model space. `video` [B, 3, T', 8h, 8w] in [-1, 1] is their decoded
        video in the stream: T' is 4T, or 4T - 3 for the first block of a video. Raises PackForcingError if the frames
        are missing or have another shape.
        """
        _require_latents(latents)
        small = None if self.encode is None else self._small(latents.shape, video, first_block)
        return fuse(self.model, self.high_res, latents, small)

    def _small(self, shape: torch.Size, video: Tensor | None, first_block: bool) -> Tensor:
        if video is None:
            raise PackForcingError(
                f"The compressor ('{self.branches}') got no decoded frames; its low-resolution branch "
                "needs them. Connect the VAE, or choose branches 'high_res' with trained compressor weights."
            )
        return low_res_latents(_require_encode(self.encode, self.branches), video, shape, first_block)


def fuse(model: CausalWan, high_res: HighRes | None, latents: Tensor, small: Tensor | None) -> Tensor:
    """The tokens [B, N_c, D] of one or both branches, in the model's dtype: the model's patch embedding of a block's
    `small` latents [B, 16, g_t, 2 g_h, 2 g_w], and `high_res` of its `latents` [B, 16, T, h, w], combined by its
    fusion.
    """
    low_res = None if small is None else model.patches(small).float()
    if high_res is not None:
        grid = high_res(latents.to(model.device, next(high_res.parameters()).dtype), low_res)
    elif low_res is not None:
        grid = low_res
    else:
        raise PackForcingError("A compressed block needs small latents or a trained branch; got neither.")
    return rearrange(grid.to(model.dtype), "b d t h w -> b (t h w) d")


def _require_high_res(branch: HighRes | None, branches: Branches, dim: int) -> HighRes:
    if branch is None:
        raise PackForcingError(
            f"Compressor branches '{branches}' need trained compressor weights, but none are loaded. Load a "
            "compressor file, or choose branches 'low_res' (zero-shot)."
        )
    if branch.dim != dim:
        raise PackForcingError(
            f"Got a compressor for a model of width {branch.dim}; this model's width is {dim}. Load the compressor "
            "that was trained with it, or choose branches 'low_res' (zero-shot)."
        )
    return branch


def _require_encode(encode: Encode | None, branches: Branches) -> Encode:
    if encode is None:
        raise PackForcingError(
            f"Compressor branches '{branches}' need the VAE, but none is connected: the low-resolution branch "
            "encodes the "
            "decoded frames again. Connect the Wan2.1 VAE, or choose branches 'high_res' with trained weights."
        )
    return encode


def _require_latents(latents: Tensor) -> None:
    if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS or 0 in latents.shape:
        raise PackForcingError(
            f"Got latents of shape {list(latents.shape)} for the compressor; expected [B, {LATENT_CHANNELS}, T, h, w], "
            "none of them 0."
        )
