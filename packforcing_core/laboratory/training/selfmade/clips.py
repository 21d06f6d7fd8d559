"""Clips that the model generates, one file each, so that a killed run resumes with the next one.

Clip i depends only on the seed and i. Two clips in a row, 2j and 2j + 1, share a prompt and differ in their noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ....errors import PackForcingError
from ....model.causal import CausalWan
from ....render.parts import latent_events
from ....sampler.rollout import BlockDone
from ....vae.wan_vae import WanVAE
from ..compressor import small_latents
from ..data import LatentBatch
from ..randomness import step_generator
from .base import Base
from .texts import Texts


class Clip(NamedTuple):
    """`latents` [16, F, h, w] float32 in model space, and the low-resolution branch's `low_res` [16, blocks x g_t,
    2 g_h, 2 g_w] of its blocks.
    """

    latents: Tensor
    low_res: Tensor
    prompt: str


@dataclass(frozen=True)
class Clips:
    """The clips of a folder, made with `base` from `prompts` under `seed`."""

    folder: Path
    base: Base
    prompts: Sequence[str]
    seed: int

    def prompt(self, index: int) -> str:
        """That of clip `index`: pairs of clips go through the prompts in an order that the seed decides."""
        turn, place = divmod(index // 2, len(self.prompts))
        order = torch.randperm(len(self.prompts), generator=step_generator(self.seed, "prompts", turn))
        return self.prompts[int(order[place])]

    def path(self, index: int) -> Path:
        return self.folder / f"clip-{self.seed}-{index:05d}.safetensors"

    def missing(self, count: int) -> list[int]:
        """Which of the first `count` clips are still to be made."""
        return [index for index in range(count) if not self.path(index).exists()]

    def noise_seed(self, index: int) -> int:
        """The seed of clip `index`'s noise."""
        return step_generator(self.seed, "clip", index).initial_seed()

    def read(self, index: int) -> Clip:
        """PackForcingError for a file that is damaged."""
        path = self.path(index)
        try:
            with safe_open(path, "pt") as file:
                prompt = file.metadata()["prompt"]
                return Clip(file.get_tensor("latents").float(), file.get_tensor("low_res").float(), prompt)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise PackForcingError(f"{path} cannot be read ({error!r}). Remove it; it is generated again.") from error

    @torch.no_grad()
    def make(self, index: int, model: CausalWan, vae: WanVAE, texts: Texts) -> Path:
        """Rolls out clip `index` under the KV cache policy of its family, compresses its blocks' frames, and writes
        both.

        A file is there whole or not at all.
        """
        prompt = self.prompt(index)
        context = texts([prompt])
        latents = rolled_out(model, context, self.base, self.noise_seed(index))
        batch, frames = LatentBatch(latents.to(model.device), context, [index]), self.base.clip.frames_per_block
        small = small_latents(batch, range(self.base.clip.blocks), frames, vae)
        low_res = torch.cat([small[block] for block in sorted(small)], dim=2)
        path = self.path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"latents": latents[0].half(), "low_res": low_res[0].half().cpu()}
        save_file({name: t.contiguous() for name, t in tensors.items()}, f"{path}.part", {"prompt": prompt})
        os.replace(f"{path}.part", path)
        return path

    def made(self, count: int, model: CausalWan, vae: WanVAE, texts: Texts) -> Iterator[int]:
        """Makes what is missing of the first `count` clips, yielding the number of each that is there."""
        for index in self.missing(count):
            self.make(index, model, vae, texts)
            yield index


def rolled_out(model: CausalWan, context: Tensor, base: Base, seed: int) -> Tensor:
    """A clip [1, 16, F, h, w] float32 on the CPU, as the sampler makes it from noise of `seed`."""
    events = latent_events(model, context, base.recipe(seed))
    return torch.cat([event.latents for event in events if isinstance(event, BlockDone)], dim=2)


def clip_bytes(base: Base) -> int:
    """Bytes of one clip's file, its header aside."""
    clip = base.clip
    times, rows, columns = clip.compressed_grid
    numbers = clip.latent_frames * clip.latent_height * clip.latent_width + clip.blocks * times * 4 * rows * columns
    return 2 * 16 * numbers
