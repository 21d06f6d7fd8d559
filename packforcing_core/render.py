"""Joins the stages of a render, from the recipe to the film. Every stage is an iterator over the one before it.

events = latent_events(model, context, recipe)
for event in film_events(events, decoder, writer, blocks_per_segment=8):
    ...  # StepDone, BlockDone, FilmedBlock: show, count, stop

"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .cache.cache import KVCache
from .cache.config import TRAINED_FRAMES, Policy, SinkWindow, Window
from .cache.layer_kv import KVShape
from .cache.partitions import Partitions
from .checkpoint.families import Family
from .compressor.compressor import Compressor
from .compressor.high_res import HighRes
from .geometry import VideoGeometry
from .model.causal import CausalWan
from .model.config import WanConfig
from .pipeline import overlapped
from .rope import GridRope
from .sampler.noise import seeded_noise
from .sampler.rolling import rolling_rollout
from .sampler.rollout import BlockDone, Denoising, Event, Twins, rollout
from .vae.streaming import StreamingDecoder, encode, to_frames
from .vae.wan_vae import WanVAE
from .video.writer import SegmentedWriter


@dataclass(frozen=True)
class Recipe:
    """All that decides the latents of a render besides the model and the prompt."""

    geometry: VideoGeometry
    policy: Policy
    denoising: Denoising
    seed: int

    def __post_init__(self):
        _ = self.partitions  # A policy that contradicts itself is refused here, before any work.

    @property
    def partitions(self) -> Partitions:
        """The cache's plan for this clip; PackForcingError when the policy contradicts itself, the block length or the
        rollout.
        """
        return self.unlimited_partitions.limited_to(self.geometry.latent_frames)

    @property
    def compresses_sometime(self) -> bool:
        """Whether this policy compresses the past of a clip that is long enough."""
        return self.unlimited_partitions.bank is not None

    @property
    def unlimited_partitions(self) -> Partitions:
        """The cache's plan for a clip of any length."""
        return self.policy.partitions(self.geometry.frames_per_block, self.denoising.window_blocks)


class FilmRecord(Protocol):
    """Keeps notes of a film that is being made."""

    def filmed(self, block: int, frames: np.ndarray) -> None: ...

    def segment_closed(self, next_block: int, decoder: StreamingDecoder) -> None: ...


@dataclass(frozen=True)
class FilmedBlock:
    """A block has been decoded and handed to the encoder: `frames` uint8 [T, H, W, 3]."""

    block: int
    frames: np.ndarray


def default_policy(family: Family) -> Policy:
    """The memory that a family was trained with."""
    # A family that attends to all history was trained on clips of 21 latent frames; within them this is the same.
    window_frames = family.attended_frames or family.window_frames or TRAINED_FRAMES
    if family.sink_frames == 0:
        return Window(window_frames)
    return SinkWindow(window_frames, family.sink_frames)


def kv_shape(config: WanConfig, geometry: VideoGeometry, dtype) -> KVShape:
    """What a cache must hold for this model at this size."""
    return KVShape(
        config.num_layers,
        config.num_heads,
        config.head_dim,
        geometry.tokens_per_frame,
        dtype,
        twin_tokens=geometry.twin_tokens,
    )


def build_cache(model: CausalWan, recipe: Recipe, partitions: Partitions | None = None) -> KVCache:
    """The preallocated cache of a render, on the model's device and in its dtype, by its own plan or another."""
    rope = GridRope(model.config.head_dim, recipe.geometry.grid, model.device)
    shape = kv_shape(model.config, recipe.geometry, model.dtype)
    return KVCache(partitions or recipe.partitions, shape, rope, model.attention, model.device)


def latent_events(
    model: CausalWan, context: Tensor, recipe: Recipe, known: Sequence[BlockDone] = (), twins: Twins | None = None
) -> Iterator[Event]:
    """Runs the rollout of `recipe` for the text embeddings `context` [1, 512, text_dim].

    Blocks in `known` are not denoised again. `twins` is required by policies with a bank.
    """
    text, cache = model.encode_text(context), build_cache(model, recipe)
    noise, blocks = seeded_noise(recipe.seed, recipe.geometry.block_shape), recipe.geometry.blocks
    if recipe.denoising.rolling:
        yield from rolling_rollout(model, text, cache, noise, recipe.denoising, blocks, known, twins)
    else:
        latents, selections = [done.latents for done in known], [done.selection for done in known]
        yield from rollout(model, text, cache, noise, recipe.denoising, blocks, latents, selections, twins)


def build_twins(model: CausalWan, vae: WanVAE, high_res: HighRes | None) -> Twins:
    """What a policy with a bank needs besides the model: the trained compressor, or without one its zero-shot form."""
    branches = "low_res" if high_res is None else "both"
    return Twins(Compressor(model, branches, high_res=high_res, encode=partial(encode, vae)), StreamingDecoder(vae))


def film_events(
    events: Iterator[Event],
    decoder: StreamingDecoder,
    writer: SegmentedWriter,
    blocks_per_segment: int,
    *,
    first_block: int = 0,
    record: FilmRecord | None = None,
    frugal: bool = False,
) -> Iterator[Event | FilmedBlock]:
    """Decodes and encodes each block while the next one is made, and closes a segment every `blocks_per_segment`.

    A block that brings its video along is not decoded again; once one does, all that follow do. Blocks before
    `first_block`, where the writer's film already has them, are decoded for what the decoder remembers of them only.
    `record` hears of every filmed block and closed segment. `frugal` decodes in the smallest steps and lets the rollout
    wait for it.
    """
    beside = _side_stream(decoder.device)

    def film(done: BlockDone) -> FilmedBlock:
        with beside:
            video = decode_block(decoder, done.latents, frugal) if done.video is None else done.video
            filmed = FilmedBlock(done.block, to_frames(video))
        if done.block < first_block:
            return filmed
        writer.write(filmed.frames)
        ended = (done.block + 1) % blocks_per_segment == 0
        if ended:
            writer.end_segment()
        if record:
            record.filmed(done.block, filmed.frames)
            if ended and done.video is None:
                record.segment_closed(done.block + 1, decoder)
        return filmed

    for event in overlapped(events, BlockDone, film, ahead=0 if frugal else 1):
        if not (isinstance(event, FilmedBlock) and event.block < first_block):
            yield event


def decode_block(decoder: StreamingDecoder, latents: Tensor, frugal: bool) -> Tensor:
    """The block's video; frugal: one latent frame at a time, each taken to the host, which gives the same frames."""
    if not frugal:
        return decoder.push(latents)
    return torch.cat([decoder.push(frame).cpu() for frame in latents.split(1, dim=2)], dim=2)


def _side_stream(device: torch.device) -> AbstractContextManager:
    """On a GPU a stream of its own, so that decoding does not queue behind the transformer; elsewhere nothing."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # The weights may still be on their way.
    return torch.cuda.stream(stream)
