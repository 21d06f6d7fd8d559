"""The speed of single kernels at the sizes of a block: matrix product, attention and convolution."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention import BACKENDS, Capability, measured_order, supported
from ...model.ops import TorchOps
from ...vae.state import convolve_by_frames
from .clock import in_turns
from .subject import FRAMES_PER_BLOCK, Scale

LAYOUTS = {"NCDHW": torch.contiguous_format, "channels last": torch.channels_last_3d}
BY_FRAMES = "2-D by frames"


def matmul_rate(scale: Scale, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Operations per second of the first feed-forward matrix on a block's tokens."""
    config, tokens = scale.config, scale.geometry.tokens_per_frame * FRAMES_PER_BLOCK
    x = torch.randn(tokens, config.dim, device=device, dtype=dtype)
    weight = torch.randn(config.ffn_dim, config.dim, device=device, dtype=dtype)
    seconds = _median_seconds(lambda: F.linear(x, weight), device, repeats)
    return 2.0 * tokens * config.dim * config.ffn_dim / seconds


def attention_rates(
    scale: Scale, attended: int, device: torch.device, dtype: torch.dtype, repeats: int
) -> dict[str, float]:
    """Operations per second of each available backend, fastest first, for a block's queries and `attended` keys."""
    config, tokens = scale.config, scale.geometry.tokens_per_frame * FRAMES_PER_BLOCK
    sizes = [(1, length, config.num_heads, config.head_dim) for length in (tokens, attended, attended)]
    q, k, v = (torch.randn(size, device=device, dtype=dtype) for size in sizes)
    rates = {}

    def seconds(name: str) -> float:
        attention = BACKENDS[name].build()
        measured = _median_seconds(lambda: attention(q, k, v), device, repeats)
        rates[name] = 4.0 * tokens * attended * config.dim / measured
        return measured

    names = supported(Capability.of(device, dtype, config.head_dim), exact=False)
    return {name: rates[name] for name in measured_order(names, seconds)}


def conv_rates(scale: Scale, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Operations per second of the decoder's full-size convolution on one frame, by memory layout, fastest first."""
    width = scale.vae.decoder_widths[-1]
    conv = torch.nn.utils.skip_init(TorchOps.Conv3d, width, width, 3, padding=(0, 1, 1), device=device, dtype=dtype)
    conv.requires_grad_(False).weight.normal_(std=(27 * width) ** -0.5)
    conv.bias.zero_()
    x = torch.randn(1, width, 3, scale.height, scale.width, device=device, dtype=dtype)
    runs = {name: _conv_run(conv, x.contiguous(memory_format=layout)) for name, layout in LAYOUTS.items()}
    last = x.contiguous(memory_format=torch.channels_last_3d)
    runs[BY_FRAMES] = lambda: convolve_by_frames(conv, last.unbind(2))
    operations = 2.0 * 27 * width**2 * scale.height * scale.width
    with torch.no_grad():
        seconds = {name: median(times) for name, times in in_turns(runs, repeats, device).items()}
    return {name: operations / seconds[name] for name in sorted(seconds, key=seconds.__getitem__)}


def _conv_run(conv: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: conv(x)


def _median_seconds(run: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    with torch.no_grad():
        return median(in_turns({"": run}, repeats, device)[""])
