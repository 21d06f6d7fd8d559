"""Training data of the flow stages: latents of clips, encoded once and kept in a folder, with their prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PackForcingError
from ..vae.config import normalise
from ..vae.wan_vae import WanVAE
from .clips import draw_clips
from .ranks import share, turns
from .vae import encode_clip

SHARD_CLIPS = 64


@dataclass(frozen=True)
class LatentBatch:
    """`latents` [B, 16, F, h, w] float32 in model space and text embeddings `context` [B, text_len, text_dim].

    `indices` are the samples' numbers in the batch of all ranks. `low_res` [B, 16, blocks x g_t, 2 g_h, 2 g_w] are the
    small latents of the compressor's low-resolution branch, block by block, where the data has them.
    """

    latents: Tensor
    context: Tensor
    indices: Sequence[int]
    low_res: Tensor | None = None


@torch.no_grad()
def encode_little_world(vae: WanVAE, folder: Path, clips: int, latent_frames: int, seed: int) -> None:
    """Writes latents (float16) and prompts of `clips` clips of the little world, in shards; shards that exist are
    kept. Ranks share the shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in turns(-(-clips // SHARD_CLIPS)):
        path = folder / f"{shard:05d}.safetensors"
        if path.exists():
            continue
        drawn = [draw_clips(seed, shard, [i], 4 * latent_frames - 3) for i in range(SHARD_CLIPS)]
        with torch.autocast("cpu", torch.bfloat16):
            latents = torch.cat([normalise(encode_clip(vae, clip.video)[0]) for clip in drawn])
        prompts = json.dumps([clip.prompts[0] for clip in drawn])
        save_file({"latents": latents.half().contiguous()}, f"{path}.part", {"prompts": prompts})
        os.replace(f"{path}.part", path)


class LatentFolder:
    """The shards of a folder. Batches are drawn from (seed, step); every rank takes its share."""

    def __init__(self, folder: Path, encode: Callable[[Sequence[str]], Tensor], batch: int, seed: int):
        self.encode, self.batch, self.seed = encode, batch, seed
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise PackForcingError(f"{folder} has no latents (*.safetensors); encode clips into it first.")
        shards, self.prompts = [], []
        for path in paths:
            with safe_open(path, "pt") as file:
                shards.append(file.get_tensor("latents"))
                self.prompts += json.loads(file.metadata()["prompts"])
        self.latents = torch.cat(shards)

    def __call__(self, step: int) -> LatentBatch:
        chosen = np.random.default_rng((self.seed, step)).integers(len(self.prompts), size=self.batch)
        own = [int(chosen[i]) for i in share(self.batch)]
        context = self.encode([self.prompts[i] for i in own])
        return LatentBatch(self.latents[own].float(), context, share(self.batch))
