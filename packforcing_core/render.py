"""Joins the stages of a render, from the recipe to the film. Every stage is an iterator over the one before it.

events = latent_events(model, context, recipe)
for event in film_events(events, decoder, writer, blocks_per_segment=8):
    ...  # StepDone, BlockDone, FilmedBlock: show, count, stop

"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
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
from .errors import PackForcingError
from .geometry import PIXEL_FRAMES_PER_LATENT, VideoGeometry, pixel_frames
from .model.causal import CausalWan
from .model.config import WanConfig
from .pipeline import overlapped
from .rope import GridRope
from .sampler.noise import NoiseSource, seeded_noise
from .sampler.rollout import BlockDone, Denoising, Event, Twins
from .sampler.scripted import scripted_rollout
from .sampler.start import Start
from .text.script import Script
from .vae.streaming import StreamingDecoder, encode, to_frames
from .vae.tiny import TinyDecoder
from .vae.wan_vae import WanVAE
from .video.writer import SegmentedWriter

NOISE_ALONE = Start()


@dataclass(frozen=True)
class Recipe:
    """All that decides the latents of a render besides the model and the prompt."""

    geometry: VideoGeometry
    policy: Policy
    denoising: Denoising
    seed: int
    start: Start = NOISE_ALONE

    def __post_init__(self):
        _ = self.partitions  # A policy that contradicts itself is refused here, before any work.
        if self.denoising.rolling and self.start is not NOISE_ALONE:
            raise PackForcingError(
                "A rolling rollout begins from noise alone; a picture or film needs a preset that samples "
                "block by block."
            )
        if len(self.given) >= self.geometry.blocks:
            raise PackForcingError(
                f"{len(self.given)} blocks are given and the render has {self.geometry.blocks}: there is nothing to "
                "make. Ask for more seconds, or give less."
            )

    @property
    def given(self) -> list[BlockDone]:
        """The blocks that the render begins from; they are committed, not sampled."""
        return self.start.known(self.geometry.frames_per_block)

    @property
    def left_out_blocks(self) -> int:
        """How many of the first blocks are no part of the film."""
        return self.start.left_out_blocks(self.geometry.frames_per_block)

    @property
    def film_frames(self) -> int:
        """Pixel frames of the film."""
        return self.frames_before(self.geometry.blocks)

    def frames_before(self, block: int) -> int:
        """Pixel frames of the film before `block`."""
        return max(0, pixel_frames(block * self.geometry.frames_per_block) - pixel_frames(self._left_out_frames))

    @property
    def _left_out_frames(self) -> int:
        return self.left_out_blocks * self.geometry.frames_per_block

    def block_at(self, seconds: float) -> int:
        """The block that shows the moment `seconds` of the film."""
        return self.geometry.block_at(seconds + pixel_frames(self._left_out_frames) / self.geometry.fps)

    def begun(self, start: Start, seconds: float) -> Recipe:
        """The recipe of a film of `seconds` with this start; what is left out of the film is made besides."""
        g = self.geometry
        extra = start.left_out_blocks(g.frames_per_block)
        if extra:
            new = round(seconds * g.fps / (PIXEL_FRAMES_PER_LATENT * g.frames_per_block))
            g = replace(g, blocks=extra + max(1, new))
        return replace(self, geometry=g, denoising=start.denoising(self.denoising, g.frames_per_block), start=start)

    def describe_length(self, wished_seconds: float) -> str:
        """What rounding to whole blocks made of the wished length, and what the render begins from."""
        g, given = self.geometry, len(self.given)
        if self.left_out_blocks:
            return (
                f"{wished_seconds:g} s at {g.fps:g} FPS became {self.film_frames / g.fps:.2f} s: {self.film_frames} "
                f"frames in {g.blocks - given} blocks of {g.frames_per_block} latent frames, behind {given} given "
                "blocks that are left out of the film"
            )
        told = g.describe_length(wished_seconds)
        if given:
            return f"{told}; the first {given} of them ({pixel_frames(given * g.frames_per_block)} frames) are given"
        if self.denoising.repainted_blocks:
            schedule = self.denoising.of_block(0)
            return (
                f"{told}; the first {self.denoising.repainted_blocks} of them are repainted from noise level "
                f"{100 * schedule.sigmas[0]:.0f}% in {len(schedule)} steps"
            )
        return told

    def noise(self, seed: int | None = None, take: int = 0) -> NoiseSource:
        """Where the blocks begin; of another `seed` than the recipe's own for a retake."""
        own = seeded_noise(self.seed if seed is None else seed, self.geometry.block_shape, take)
        return self.start.noise(own, self.denoising, self.geometry.frames_per_block)

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

    def segment_closed(self, next_block: int, decoder: StreamingDecoder | TinyDecoder) -> None: ...


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
    model: CausalWan,
    text: Tensor | Script,
    recipe: Recipe,
    known: Sequence[BlockDone] = (),
    twins: Twins | None = None,
) -> Iterator[Event]:
    """Runs the rollout of `recipe` for the text embeddings `text` [1, 512, text_dim], or for several over time.

    Blocks in `known` are not denoised again. `twins` is required by policies with a bank.
    """
    known = [*known, *recipe.given[len(known) :]]
    cache, made = build_cache(model, recipe), {done.block: done.latents for done in known}
    events = scripted_rollout(
        model,
        Script.of(text),
        cache,
        recipe.noise(),
        recipe.denoising,
        recipe.geometry.blocks,
        made.__getitem__,
        known,
        twins,
    )
    for event in events:
        if isinstance(event, BlockDone):
            made[event.block] = event.latents
            for block in {b for b in made if b < event.block}.difference(cache.blocks_in_view()):
                del made[block]  # It can no more have to be committed again.
        yield event


def build_twins(model: CausalWan, vae: WanVAE, high_res: HighRes | None) -> Twins:
    """What a policy with a bank needs besides the model: the trained compressor, or without one its zero-shot form."""
    branches = "low_res" if high_res is None else "both"
    return Twins(Compressor(model, branches, high_res=high_res, encode=partial(encode, vae)), StreamingDecoder(vae))


def film_events(
    events: Iterator[Event],
    decoder: StreamingDecoder | TinyDecoder,
    writer: SegmentedWriter,
    blocks_per_segment: int,
    *,
    first_block: int = 0,
    left_out: int = 0,
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
        if done.block < max(first_block, left_out):
            return filmed
        writer.write(filmed.frames)
        ended = (done.block + 1 - left_out) % blocks_per_segment == 0
        if ended:
            writer.end_segment()
        if record:
            record.filmed(done.block, filmed.frames)
            if ended and done.video is None:
                record.segment_closed(done.block + 1, decoder)
        return filmed

    for event in overlapped(events, BlockDone, film, ahead=0 if frugal else 1):
        if not (isinstance(event, FilmedBlock) and event.block < max(first_block, left_out)):
            yield event


def decode_block(decoder: StreamingDecoder | TinyDecoder, latents: Tensor, frugal: bool) -> Tensor:
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
