"""What is measured: models of exact shapes with random weights, created on the device, and streams of blocks.

Random weights are valid for time and memory, but not for quality, or for what a policy selects.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...attention import Attention, sdpa
from ...cache.cache import KVCache
from ...cache.config import PackForcing, Policy
from ...cache.policies.packforcing import FULL_SPAN
from ...checkpoint.families import DEFAULT_FAMILY
from ...compressor.compressor import Compressor
from ...compressor.high_res import HighRes, build_high_res
from ...errors import PackForcingError
from ...geometry import VideoGeometry
from ...model.causal import CausalWan
from ...model.config import WAN_SIZES, WanConfig
from ...model.ops import TorchOps, build_on_meta
from ...model.wan import Wan
from ...recipe.recipe import Recipe
from ...render.parts import build_cache
from ...sampler.denoising import Denoising, denoise_block
from ...sampler.noise import seeded_noise
from ...sampler.rollout import Compression, commit_block, commit_due_block
from ...vae.config import VAEConfig
from ...vae.load import channels_last
from ...vae.streaming import StreamingDecoder, encode, to_frames
from ...vae.wan_vae import WanVAE
from .clock import Laps

FRAMES_PER_BLOCK = 4
SEED = 0


@dataclass(frozen=True)
class Scale:
    """The sizes of a measurement: a transformer, a VAE, an image of `width` x `height` pixels, and a cache planned for
    `blocks` (by default two minutes).
    """

    name: str
    config: WanConfig
    vae: VAEConfig
    width: int
    height: int
    blocks: int = 120

    @property
    def geometry(self) -> VideoGeometry:
        return VideoGeometry(self.width, self.height, fps=16.0, frames_per_block=FRAMES_PER_BLOCK, blocks=self.blocks)


# Wide enough that matrix products take longer than Python's overhead.
_SMALL = Scale(
    "small",
    WanConfig(dim=512, ffn_dim=2048, num_layers=8, num_heads=4, text_dim=64),
    VAEConfig(encoder_dim=16, decoder_dim=16),
    width=128,
    height=64,
    blocks=201,
)
SCALES = {
    "quick": replace(_SMALL, name="quick", config=replace(_SMALL.config, num_layers=4)),
    "small": _SMALL,
    "1.3B": Scale("1.3B", WAN_SIZES["1.3B"], VAEConfig(), width=832, height=480),
}


EARLY = 21
"""The first block with a full window, counted from 1."""
POSITIONS, TWO_MINUTES = (5, EARLY, 60, 200), (EARLY, 115)
"""Blocks to time: on a CPU with small models, and where two minutes are long enough."""


@dataclass(frozen=True)
class Plan:
    """What to measure. `rounds` is the number of blocks of each stream, `repeats` the number of runs of a kernel.

    Each stream starts at one of the `positions` (blocks counted from 1; 21 must be among them). On a CPU it repeats
    that block; on a GPU it continues from there, because its cache is too large to be restored. `survival` samples 40
    blocks and more.
    """

    scale: Scale
    device: torch.device
    dtype: torch.dtype
    rounds: int
    repeats: int
    positions: tuple[int, ...] = TWO_MINUTES
    attention: str = "sdpa"
    compiled: bool = False
    survival: bool = True

    @property
    def decoded_rounds(self) -> int:
        """Number of blocks that are also decoded; fewer, because no small differences are derived from them."""
        return min(15, max(1, self.rounds // 2))

    @property
    def returns(self) -> bool:
        """Whether a stream repeats one block."""
        return self.device.type == "cpu"


def build_model(
    scale: Scale,
    device: torch.device,
    dtype: torch.dtype,
    attention: Attention = sdpa,
    compiled: bool = False,
) -> CausalWan:
    """A causal Wan with random weights, made on `device`."""
    net = build_on_meta(lambda: Wan(scale.config, TorchOps)).to(dtype)
    net.patch_embedding.float()
    net = _random_weights(net, device)
    return CausalWan(net, scale.config, dtype=dtype, device=device, attention=attention, compiled=compiled)


def build_vae(scale: Scale, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """A Wan VAE with random weights, made on `device`."""
    return channels_last(_random_weights(build_on_meta(lambda: WanVAE(scale.vae)).to(dtype), device))


def build_recipe(scale: Scale, policy: Policy | None = None) -> Recipe:
    """A render of this scale, with PackForcing's policy of a trained compressor unless told otherwise."""
    policy = PackForcing(mid_span=FULL_SPAN) if policy is None else policy
    return Recipe(scale.geometry, policy, Denoising.of_family(DEFAULT_FAMILY), SEED)


def random_text(scale: Scale) -> Tensor:
    """Embeddings of a prompt [1, L, text_dim]."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(1, scale.config.text_len, scale.config.text_dim, generator=generator)


def random_high_res(scale: Scale, model: CausalWan) -> HighRes:
    """The trained branch of a compressor with random weights, where the model is and in its dtype."""
    return _random_weights(build_on_meta(lambda: build_high_res(scale.config.dim)).to(model.dtype), model.device)


Net = TypeVar("Net", bound=nn.Module)


def _random_weights(net: Net, device: torch.device) -> Net:
    """`net` from the meta device to `device`: matrices that keep a variance of about 1, gains 1, biases 0."""
    net = net.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(SEED)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1 or name.endswith("gamma"):
            parameter.fill_(1)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return net


class Stream:
    """A render, block by block; `skip` fills the cache with random keys instead of running the model.

    With a VAE, every block is decoded to frames on the CPU and encoded again for its compressed tokens. After `placed`,
    a stream can repeat the same block: `again` restores the state.
    """

    def __init__(self, model: CausalWan, scale: Scale, policy: Policy | None = None, vae: WanVAE | None = None):
        self.model = model
        self.recipe = build_recipe(scale, policy)
        self.cache: KVCache = build_cache(model, self.recipe)
        self.decoder = StreamingDecoder(vae) if vae else None
        self.noise = seeded_noise(SEED, scale.geometry.block_shape)
        generator = torch.Generator().manual_seed(SEED)
        self.context = random_text(scale)
        self.text = model.encode_text(self.context)
        self.compression = Compression(_compressor(model, scale, vae))
        self._latents = torch.randn(scale.geometry.block_shape, generator=generator).to(model.device)
        tokens = self.cache.shape.compressed_tokens
        self._tokens = torch.randn(1, tokens, scale.config.dim, generator=generator).to(model.device, model.dtype)
        self._there: tuple[KVCache, dict[int, Tensor]] | None = None

    @property
    def denoising(self) -> Denoising:
        return self.recipe.denoising

    @torch.no_grad()
    def block(self, laps: Laps | None = None) -> None:
        """Samples the next block. `laps` gets the parts "steps", "decode", "to host", "commit", "compress", `twin` (the
        pass over the compressed tokens).
        """
        laps = laps or Laps(self.model.device)
        view = self.cache.begin_block()
        latents = _last(
            denoise_block(self.model, self.text, view, self.noise, self.denoising.of_block(view.block), view.block)
        )
        view.selection()  # As in a rollout, which reads it before it queues the commit and what follows.
        laps.mark("steps")
        video = None
        if self.decoder:
            video = self.decoder.push(latents)
            laps.mark("decode")
            to_frames(video)
            laps.mark("to host")
        commit_block(self.model, self.text, self.cache, view, latents, self.denoising.context_noise)
        laps.mark("commit")
        if self.cache.mid:
            self.compression.waiting[view.block] = self.compression.compressor.tokens(latents, video, view.block == 0)
            laps.mark("compress")
            commit_due_block(self.model, self.text, self.cache, self.compression.waiting)
            laps.mark("twin")

    def placed(self, number: int) -> Stream:
        """This stream, positioned at block `number` (counted from 1, at least 2). All blocks before are skipped, except
        that the last one is sampled, so that the mid slots are filled as in a render.
        """
        self.skip(number - 2 - self.cache.next_block)
        self.block()
        return self

    def stay(self) -> Stream:
        """Marks the present state, to which `again` returns."""
        self._there = copy.deepcopy(self.cache), dict(self.compression.waiting)
        return self

    def again(self) -> None:
        """Returns to the state marked by `stay`; a decoder keeps its state."""
        if self._there is None:
            raise PackForcingError("Call stay() before again().")
        cache, waiting = self._there
        self.cache = copy.deepcopy(cache)
        self.compression.waiting.clear()
        self.compression.waiting.update(waiting)

    @torch.no_grad()
    def skip(self, blocks: int) -> None:
        """Skips `blocks` blocks with random keys and values; a decoder starts its video."""
        if self.decoder and blocks > 0 and self.cache.next_block == 0:
            self.decoder.push(self._latents)
        cache, shape = self.cache, self.cache.shape
        tokens = shape.tokens_per_frame * FRAMES_PER_BLOCK
        generator = torch.Generator(self.model.device).manual_seed(SEED)
        sizes = (3, shape.batch, tokens, shape.heads, shape.head_dim)
        made = torch.randn(sizes, generator=generator, device=self.model.device, dtype=shape.dtype)
        for _ in range(blocks):
            view = cache.begin_block()
            self.compression.waiting[view.block] = self._tokens
            with cache.commit(view) as writer:
                for layer in range(shape.layers):
                    writer.keep(layer, *made)
            if cache.due_block is not None:
                for block in [b for b in self.compression.waiting if b <= cache.due_block]:
                    del self.compression.waiting[block]
                with cache.commit_compressed() as writer:
                    for layer in range(shape.layers):
                        writer.keep(layer, *made[:, :, : shape.compressed_tokens])


def _compressor(model: CausalWan, scale: Scale, vae: WanVAE | None) -> Compressor:
    """With a VAE both branches, as in a render with a trained compressor; without one the branch that needs no
    frames.
    """
    high_res = random_high_res(scale, model)
    if vae is None:
        return Compressor(model, "high_res", high_res=high_res)
    return Compressor(model, "both", high_res=high_res, encode=partial(encode, vae))


def _last(events: Iterator) -> Tensor:
    """A generator's return value; its events are ignored."""
    while True:
        try:
            next(events)
        except StopIteration as done:
            return done.value
