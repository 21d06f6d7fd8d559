"""Parts that a rollout needs in addition to its recipe: the cache and the compressor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from ..cache.cache import KVCache
from ..cache.partitions import Partitions
from ..compressor.compressor import Branches, Compressor
from ..compressor.high_res import HighRes
from ..model.causal import CausalWan
from ..queued import SideStream
from ..recipe.recipe import Recipe, kv_shape
from ..rope import GridRope
from ..sampler.denoising import BlockDone, Event
from ..sampler.rollout import Compression, rollout
from ..text.script import Script
from ..vae.streaming import StreamingDecoder, encode
from ..vae.wan_vae import WanVAE


def build_cache(model: CausalWan, recipe: Recipe, partitions: Partitions | None = None) -> KVCache:
    """The preallocated cache of a render, on the model's device and in its dtype; `partitions` replaces the recipe's
    plan.
    """
    rope = GridRope(model.config.head_dim, recipe.geometry.grid, model.device)
    shape = kv_shape(model.config, recipe.geometry, model.dtype)
    return KVCache(partitions or recipe.partitions, shape, rope, model.attention, model.device)


def build_compression(model: CausalWan, vae: WanVAE, high_res: HighRes | None) -> Compression:
    """The compressor for a policy with a bank: the trained one, or its zero-shot form if `high_res` is None."""
    branches: Branches = "low_res" if high_res is None else "both"
    compressor = Compressor(model, branches, high_res=high_res, encode=partial(encode, vae))
    decoder = StreamingDecoder(vae)
    return Compression(compressor, decoder, SideStream(model.device, decoder.device))


def latent_events(
    model: CausalWan,
    text: Tensor | Script,
    recipe: Recipe,
    known: Sequence[BlockDone] = (),
    compression: Compression | None = None,
) -> Iterator[Event]:
    """The rollout of `recipe` without recording, for the embeddings `text` [1, 512, text_dim] or a script of several.
    Blocks in `known` are not denoised again. Policies with a bank require `compression`.
    """
    found = {done.block: done for done in (*recipe.given, *known)}
    cache, blocks = build_cache(model, recipe), recipe.geometry.blocks
    return rollout(model, text, cache, recipe.noise(), recipe.denoising, blocks, found.get, compression)
