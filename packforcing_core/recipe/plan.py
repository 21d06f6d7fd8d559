"""The planned sizes of a render, before anything runs: frames, blocks, tokens, bytes. Plain integers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from ..cache.bank import bits_of
from ..cache.partitions import Part, Partitions
from ..cache.select import SELECTS_AGAIN
from ..checkpoint.keys import expected_shapes
from ..geometry import blocks_text, size_text
from ..model.config import WanConfig
from .recipe import Recipe, kv_shape

HEADER_BYTES = 2000
"""Bytes of a block file's header, and of one telemetry line."""


@dataclass(frozen=True)
class RenderPlan:
    """Sizes of one render. Tokens and bytes are those of a full cache, when all slots are filled. Tokens are those that
    a denoising pass attends to; `current_blocks` are denoised together.

    `cache_bytes` is the stored past that is attended to or selected from; `buffer_bytes` is all that the cache holds on
    its device, current block included; `bank_bytes` is the bank of compressed blocks, `host_bytes` the part of it in
    system RAM. All four are exact. `weights_bytes` is exact for an unquantised model. `peak_bytes` adds the text, an
    estimate of one pass's activations, and what the VAE takes on the same device. `block_disk_bytes` is the most that a
    finished block takes in the render's folder, `disk_bytes` the whole folder (blocks, text and start) without the
    video. `dtype` is that of weights, keys and values; `stored` says how the past is kept, which may be in fewer bits.
    """

    width: int
    height: int
    fps: float
    seconds: float
    pixel_frames: int
    latent_frames: int
    frames_per_block: int
    blocks: int
    current_blocks: int
    tokens_per_frame: int
    sink_tokens: int
    mid_tokens: int
    recent_tokens: int
    current_tokens: int
    attended_tokens: int
    window_frames: float
    cache_bytes: int
    buffer_bytes: int
    bank_bytes: int
    host_bytes: int
    weights_bytes: int
    peak_bytes: int
    block_disk_bytes: int
    disk_bytes: int
    dtype: str
    stored: str

    def as_dict(self) -> dict[str, int | float | str]:
        return asdict(self)

    def describe(self, left_out: str = "", length: bool = True) -> str:
        """One line for a log or a node; `left_out` says what the peak does not include, if anything. `length`: the
        number of frames comes first.
        """
        rolling = f"{self.current_blocks} blocks rolling together | " if self.current_blocks > 1 else ""
        frames = f"{self.pixel_frames} frames in {blocks_text(self.blocks, self.frames_per_block)} | "
        return (
            f"{frames if length else ''}{rolling}attends to at most {self.attended_tokens:,} tokens | "
            f"KV cache {size_text(self.buffer_bytes)} ({size_text(self.cache_bytes)} of it past frames) | "
            f"peak about {size_text(self.peak_bytes)}{left_out} | "
            f"on disk {size_text(self.disk_bytes)}, not counting the video"
        )

    def describe_memory(self) -> str:
        """What is in view, one line each, for a node that also says `describe`: only what that leaves out."""
        rows = (
            ("sink", self.sink_tokens),
            ("mid", self.mid_tokens),
            ("recent", self.recent_tokens),
            ("current", self.current_tokens),
        )
        parts = " + ".join(f"{name} {tokens:,}" for name, tokens in rows if tokens)
        lines = (
            f"in view at most: {parts} tokens over {self.window_frames:g} positions (latent frames), in {self.stored}",
            *([f"bank in system RAM: {size_text(self.host_bytes)}"] if self.host_bytes else []),
        )
        return "\n".join(lines)


def plan_render(
    config: WanConfig, recipe: Recipe, dtype: torch.dtype = torch.bfloat16, decoder_bytes: int = 0
) -> RenderPlan:
    """The plan of `recipe` for a model with these sizes in `dtype`; `decoder_bytes` is what the VAE takes on the same
    device.
    """
    g, partitions = recipe.geometry, recipe.partitions
    shape = kv_shape(config, g, dtype)
    n = g.tokens_per_frame
    mid_tokens = g.compressed_tokens * partitions.top_k_blocks
    mid_span = partitions.bank.mid_span if partitions.bank else 0.0
    buffer_bytes = shape.buffer_bytes(partitions)
    weights = parameter_count(config) * dtype.itemsize
    activations = activation_bytes(config, n * partitions.current_frames, dtype)
    text = 2 * config.num_layers * config.text_len * config.dim * dtype.itemsize
    return RenderPlan(
        width=g.width,
        height=g.height,
        fps=g.fps,
        seconds=g.seconds,
        pixel_frames=g.pixel_frames,
        latent_frames=g.latent_frames,
        frames_per_block=g.frames_per_block,
        blocks=g.blocks,
        current_blocks=partitions.current_blocks,
        tokens_per_frame=n,
        sink_tokens=n * partitions.sink_frames,
        mid_tokens=mid_tokens,
        recent_tokens=n * partitions.rolling_recent_frames,
        current_tokens=n * partitions.current_frames,
        attended_tokens=shape.attended_tokens(partitions),
        window_frames=(shape.attended_tokens(partitions) - mid_tokens) / n + partitions.top_k_blocks * mid_span,
        cache_bytes=shape.cache_bytes(partitions),
        buffer_bytes=buffer_bytes,
        bank_bytes=shape.bank_bytes(partitions),
        host_bytes=shape.host_bytes(partitions),
        weights_bytes=weights,
        peak_bytes=weights + text + buffer_bytes + activations + decoder_bytes,
        block_disk_bytes=block_disk_bytes(config, recipe, dtype),
        disk_bytes=g.blocks * block_disk_bytes(config, recipe, dtype) + content_disk_bytes(config, recipe),
        dtype=str(dtype).removeprefix("torch."),
        stored=_stored(partitions, str(dtype).removeprefix("torch.")),
    )


def kinds(partitions: Partitions, dtype: str) -> tuple[dict[str, str], str]:
    """How the parts of the attended past that there are, and the bank, are kept in a cache of `dtype`:
    ({"sink": "int8", "recent": "bfloat16"}, "int4"). Without a bank, its kind is `dtype`.
    """
    bank = partitions.bank
    slots: dict[Part, int] = {
        "sink": partitions.sink_frames,
        "mid": partitions.top_k_blocks,
        "recent": partitions.recent_frames,
    }
    bits = {part: partitions.bits_of(part) for part, count in slots.items() if count}
    few = bits_of(bank.bank_storage) if bank else None
    return {part: f"int{n}" if n else dtype for part, n in bits.items()}, f"int{few}" if few else dtype


def _stored(partitions: Partitions, dtype: str) -> str:
    """ "bfloat16", "int8", or "bfloat16, sink+recent int8, bank int4"."""
    parts, bank = kinds(partitions, dtype)
    few = [part for part, kind in parts.items() if kind != dtype]
    whole = parts[few[0]] if few and len(few) == len(parts) else dtype
    some = [f"{'+'.join(few)} {parts[few[0]]}"] if few and whole == dtype else []
    return ", ".join([whole, *some, *([f"bank {bank}"] if partitions.bank and bank != whole else [])])


def block_disk_bytes(config: WanConfig, recipe: Recipe, dtype: torch.dtype) -> int:
    """The most that one block's file holds: float32 latents, int32 selections, compressed tokens in `dtype`."""
    g, partitions = recipe.geometry, recipe.partitions
    # Includes the noisy blocks after it in a rolling rollout.
    latents = math.prod(g.block_shape) * partitions.current_blocks
    chosen = config.num_layers * partitions.top_k_blocks
    lists = 2 if partitions.bank and partitions.bank.selector in SELECTS_AGAIN else 1
    if partitions.pruning:
        kept = partitions.pruning.budget_frames - partitions.pruning.recent_frames - partitions.sink_frames
        chosen = config.num_layers * kept * g.tokens_per_frame
    tokens = g.compressed_tokens * config.dim * dtype.itemsize if partitions.bank else 0
    return 4 * latents + lists * (4 * chosen + 8 * config.num_layers) + tokens + HEADER_BYTES


def content_disk_bytes(config: WanConfig, recipe: Recipe) -> int:
    """Text embeddings of one prompt and the start, float32."""
    start = recipe.start.latents
    return 4 * (config.text_len * config.text_dim + (0 if start is None else start.numel())) + HEADER_BYTES


def parameter_count(config: WanConfig) -> int:
    """Parameters of the transformer."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def activation_bytes(config: WanConfig, tokens: int, dtype: torch.dtype) -> int:
    """An estimate for one pass over `tokens` tokens: the residual stream, plus the larger of attention and
    feed-forward.

    Attention holds the modulated input, q, k, v and one float32 copy during rotation. The feed-forward holds its hidden
    layer before and after the activation.
    """
    stream = 2 * config.dim * dtype.itemsize
    attention = 4 * config.dim * dtype.itemsize + 3 * config.dim * 4
    feed_forward = 2 * config.ffn_dim * dtype.itemsize
    return tokens * (stream + max(attention, feed_forward))
