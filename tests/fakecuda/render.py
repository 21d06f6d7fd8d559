"""The project's own rollout and decoder at real sizes on the fake device, one block counted in its steady state.

Layers are alike, so a model with few of them serves: what a block costs grows by the same for each further layer, and
`for_layers` gives the cost of the whole. Blocks before the counted one are skipped as the bench's streams skip them:
their keys go through the cache's own commits, not through the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from unittest.mock import patch

import torch
from torch import Tensor, nn

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import Policy
from packforcing_core.checkpoint.families import DEFAULT_FAMILY, with_overrides
from packforcing_core.compressor.compressor import Compressor
from packforcing_core.geometry import LATENT_CHANNELS, PIXEL_FRAMES_PER_LATENT, VideoGeometry
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.config import WAN_SIZES, WanConfig
from packforcing_core.model.ops import TorchOps, build_on_meta
from packforcing_core.model.wan import Wan
from packforcing_core.recipe.plan import plan_render
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_cache
from packforcing_core.sampler import denoising as denoising_module
from packforcing_core.sampler import rollout as rollout_module
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.decode_bytes import weight_bytes
from packforcing_core.vae.load import channels_last
from packforcing_core.vae.streaming import StreamingDecoder, encode
from packforcing_core.vae.wan_vae import WanVAE

from .device import DEVICE, fake_cuda
from .ledger import Ledger, Part

WIDTH, HEIGHT = 832, 480
BLOCKS = 120
STEADY = 24
"""A block (from 0) by which every slot of the usual policies is full."""


@dataclass(frozen=True)
class Case:
    """What is rendered: a policy, the latent frames of a block, a model's size and how many of its layers to count."""

    policy: Policy
    frames_per_block: int = 4
    model: str = "1.3B"
    layers: int = 2
    block: int = STEADY
    dtype: torch.dtype = torch.bfloat16

    @property
    def config(self) -> WanConfig:
        return replace(WAN_SIZES[self.model], num_layers=self.layers)

    def with_layers(self, layers: int) -> Case:
        return replace(self, layers=layers)

    @property
    def recipe(self) -> Recipe:
        family = with_overrides(DEFAULT_FAMILY, frames_per_block=self.frames_per_block)
        geometry = VideoGeometry(WIDTH, HEIGHT, 16.0, self.frames_per_block, BLOCKS)
        return Recipe(geometry, self.policy, Denoising.of_family(family), 0)


def fake_weights(network: nn.Module, dtype: torch.dtype, device: torch.device = DEVICE) -> nn.Module:
    """`network` from the meta device onto a fake one; its patch embedding, where it has one, in float32."""
    embedding = getattr(network, "patch_embedding", None)
    for module in network.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                own = torch.float32 if module is embedding else dtype
                made = torch.empty_strided(weight.shape, weight.stride(), dtype=own, device=device)
                module._parameters[name] = nn.Parameter(made, requires_grad=False)
    return network.eval()


def fake_model(case: Case) -> CausalWan:
    network = fake_weights(build_on_meta(lambda: Wan(case.config, TorchOps)), case.dtype)
    return CausalWan(network, case.config, dtype=case.dtype, device=DEVICE, attention=sdpa)


def fake_vae(
    dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE, config: VAEConfig | None = None
) -> WanVAE:
    return channels_last(fake_weights(build_on_meta(lambda: WanVAE(config or VAEConfig())), dtype, device))


@contextmanager
def parts_named(ledger: Ledger) -> Iterator[None]:
    """Names the parts of a block in the ledger: steps, commit, compress, twin."""

    def plain(name, function):
        def inner(*args, **kwargs):
            with ledger.part(name):
                return function(*args, **kwargs)

        return inner

    def stepwise(function):
        def inner(*args, **kwargs):
            with ledger.part("steps"):
                return (yield from function(*args, **kwargs))

        return inner

    places = [
        (denoising_module, "denoise_block", stepwise),
        (rollout_module, "commit_block", partial(plain, "commit")),
        (rollout_module, "commit_due_block", partial(plain, "twin")),
        (Compressor, "tokens", partial(plain, "compress")),
    ]
    patches = [patch.object(place, name, wrap(getattr(place, name))) for place, name, wrap in places]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def plausible_choices(cache: KVCache) -> None:
    """Lets the choices that the host reads name blocks of the bank, of which the fakes know nothing."""
    read, draw = cache.mid.recall.read, Random(0)
    cache.mid.recall.read = lambda: [draw.sample(cache.mid.blocks, len(row)) for row in read()]


def skip(cache: KVCache, compression: Compression | None, tokens: Tensor, blocks: int) -> None:
    """Lets `blocks` blocks pass without the model."""
    shape, frames = cache.shape, cache.partitions.frames_per_block
    sizes = (shape.batch, shape.tokens_per_frame * frames, shape.heads, shape.head_dim)
    made = [torch.empty(sizes, dtype=shape.dtype, device=DEVICE) for _ in range(3)]
    for _ in range(blocks):
        view = cache.begin_block()
        if compression:
            compression.waiting[view.block] = tokens
        with cache.commit(view) as writer:
            for layer in range(shape.layers):
                writer.keep(layer, *made)
        if cache.due_block is None:
            continue
        for block in [b for b in compression.waiting if b <= cache.due_block]:
            del compression.waiting[block]
        with cache.commit_compressed() as writer:
            for layer in range(shape.layers):
                writer.keep(layer, *(rows[:, : shape.compressed_tokens] for rows in made))


class Undecoded:
    """Frames of the right shape at no cost: a decoder is counted by itself."""

    def push(self, latents: Tensor) -> Tensor:
        return torch.empty(1, 3, PIXEL_FRAMES_PER_LATENT * latents.shape[2], HEIGHT, WIDTH, device=DEVICE)


def planned_peak(case: Case) -> int:
    """What the plan gives for `counted_block`: with a bank the VAE's weights and the finished frames lie beside it."""
    planned = plan_render(case.config, case.recipe, case.dtype).peak_bytes
    if not case.recipe.partitions.bank:
        return planned
    finished = 3 * 4 * HEIGHT * WIDTH * PIXEL_FRAMES_PER_LATENT * case.frames_per_block
    return planned + weight_bytes(VAEConfig(), case.dtype) + finished


def counted_block(case: Case, build: Callable[[Case], CausalWan] = fake_model) -> Ledger:
    """The ledger of block `case.block` without its decode."""
    with fake_cuda() as ledger, torch.no_grad(), parts_named(ledger):
        recipe, model = case.recipe, build(case)
        prompt = torch.empty(1, case.config.text_len, case.config.text_dim)
        cache, shape, compression = build_cache(model, recipe), recipe.geometry.block_shape, None
        tokens = torch.empty(1, recipe.geometry.compressed_tokens, case.config.dim, dtype=case.dtype, device=DEVICE)
        if recipe.partitions.bank:
            plausible_choices(cache)
            vae = fake_vae(case.dtype)
            compression = Compression(Compressor(model, "low_res", encode=partial(encode, vae)), Undecoded())
        skip(cache, compression, tokens, case.block - 1)
        events = rollout(
            model, prompt, cache, seeded_noise(0, shape), recipe.denoising, case.block + 2, compression=compression
        )
        _run_block(events, case.block - 1)  # What follows finds the slots as a render leaves them.
        ledger.forget_counts()
        ledger.peak = ledger.live
        _run_block(events, case.block)
        events.close()
    return ledger


def counted_decode(kernels: bool = True, memory: int = 80 * 10**9) -> Ledger:
    """The ledger of the second push of a video in blocks of 4."""
    with fake_cuda(kernels, memory) as ledger, torch.no_grad():
        decoder = StreamingDecoder(fake_vae())
        latents = torch.empty(1, LATENT_CHANNELS, 4, HEIGHT // 8, WIDTH // 8, device=DEVICE)
        for _ in range(2):
            ledger.forget_counts()
            ledger.peak = ledger.live
            with ledger.part("decode"):
                decoder.push(latents)
    return ledger


def _run_block(events: Iterator, block: int) -> None:
    for event in events:
        if isinstance(event, BlockDone) and event.block == block:
            return
    raise AssertionError(f"block {block} never came")


def for_layers(few: Part, more: Part, layers: tuple[int, int], wanted: int) -> dict[str, float]:
    """What a part costs with `wanted` layers, from what it costs with two other numbers of them."""
    low, high = layers

    def stretched(a: float, b: float) -> float:
        return a + (b - a) * (wanted - low) / (high - low)

    names = ("launches", "moved_bytes", "to_host", "to_device")
    costs = {name: stretched(getattr(few, name), getattr(more, name)) for name in names}
    costs["waits"] = stretched(sum(few.waits.values()), sum(more.waits.values()))
    return costs


def moved_by(part: Part, *files: str) -> int:
    """Bytes moved by lines of those files."""
    return sum(moved for where, moved in part.sites.items() if any(f"@ {name}:" in where for name in files))


def table(ledger: Ledger) -> str:
    """The parts of a block, for a failed test and for the page."""
    lines = ["| part | launches | GB moved | waits |", "|---|---|---|---|"]
    for name, part in ledger.parts.items():
        lines.append(f"| {name} | {part.launches:,} | {part.moved_bytes / 1e9:.2f} | {sum(part.waits.values())} |")
    waits: Counter[str] = ledger.total().waits
    return "\n".join([*lines, *(f"{count} x {where}" for where, count in waits.most_common())])
