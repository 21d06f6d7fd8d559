"""The model of a study with its decoder, texts and compressor, and rendering one row's video with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...compressor.compressor import Compressor
from ...compressor.high_res import HighRes
from ...devices import DTYPES
from ...geometry import VideoGeometry
from ...miniature import load as miniature
from ...miniature.world import FPS, HEIGHT, WIDTH
from ...model.causal import CausalWan
from ...recipe.recipe import Recipe
from ...render.parts import latent_events
from ...sampler.denoising import BlockDone, Denoising
from ...sampler.rollout import Compression
from ...vae.decoders import Decoder
from ...vae.streaming import StreamingDecoder, encode, to_frames
from ...vae.wan_vae import WanVAE
from .cases import Case
from .rows import FRAMES_PER_BLOCK, Row


@dataclass(frozen=True)
class Subject:
    """`texts` makes prompts to contexts [B, L, text_dim]; `weights` names the weights of model, VAE and texts together.
    `high_res` is the trained branch of the compressor, None where there is none, and `compressor` names its weights."""

    model: CausalWan
    vae: WanVAE
    texts: Callable[[list[str]], Tensor]
    denoising: Denoising
    weights: str
    high_res: HighRes | None = None
    compressor: str = ""

    @property
    def trained(self) -> bool:
        return self.high_res is not None

    def recipe(self, row: Row, seed: int, seconds: float) -> Recipe:
        geometry = VideoGeometry.from_seconds(
            seconds, width=WIDTH, height=HEIGHT, fps=FPS, frames_per_block=FRAMES_PER_BLOCK
        )
        return Recipe(geometry, row.policy, self.denoising, seed)


Load = Callable[[], Subject]


def load_miniature(dtype: str, compressor: Path = miniature.COMPRESSOR, model: Path = miniature.MODEL) -> Subject:
    """The shipped miniature in `dtype` (a name in DTYPES), with its own transformer and compressor or others."""
    kind = DTYPES[dtype]
    loaded = miniature.load_compressor(compressor, dtype=kind)
    return Subject(
        miniature.load_model(kind, path=model),
        miniature.load_vae(kind),
        miniature.load_text(),
        Denoising.of_family(miniature.FAMILY),
        _digest(model, miniature.VAE, miniature.TEXT),
        loaded.high_res if loaded else None,
        _digest(compressor),
    )


def _digest(*paths: Path) -> str:
    """The first 16 digits of the SHA-256 of the existing files, concatenated."""
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def render_row(subject: Subject, row: Row, case: Case, seconds: float) -> np.ndarray:
    """The frames uint8 [T, 64, 128, 3] of a row's video."""
    recipe = subject.recipe(row, case.seed, seconds)
    return video_frames(subject, row, case.prompt, recipe, StreamingDecoder(subject.vae))


def video_frames(subject: Subject, row: Row, prompt: str, recipe: Recipe, decoder: Decoder) -> np.ndarray:
    """The frames uint8 [T, 64, 128, 3] of a recipe with a row's compressor, given blocks and all."""
    compression = compression_of(subject, row, decoder)
    frames = []
    with torch.inference_mode():
        for event in latent_events(subject.model, subject.texts([prompt]), recipe, compression=compression):
            if isinstance(event, BlockDone):
                video = decoder.push(event.latents) if event.video is None else event.video
                frames.append(to_frames(video))
    return np.concatenate(frames)


def compression_of(subject: Subject, row: Row, decoder: Decoder) -> Compression | None:
    """The compressor of a row; None if it has none."""
    if row.branches is None:
        return None
    high_res = subject.high_res if row.needs_training else None
    encoder = partial(encode, subject.vae)
    return Compression(Compressor(subject.model, row.branches, high_res=high_res, encode=encoder), decoder)
