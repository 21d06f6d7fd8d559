"""A dry run of a training on the meta device, which allocates nothing: lists its networks and plans its memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...compressor.high_res import Fusion, HighRes
from ...model.ops import TorchOps, build_on_meta
from ...model.wan import Wan
from .learner import Optimisation
from .memory import plan_memory
from .plans import measured_passes
from .presets import Size


def dry_run(size: Size, ranks: int, recompute: bool, samples: int = 1, fusion: Fusion = "add") -> Iterator[str]:
    """Yields lines that describe Self-Forcing, the stage with the most networks: generator, compressor and critic are
    trained, and a frozen teacher of the same size is the real score model.
    """
    course = size.courses["self-forcing"]
    networks: list[tuple[str, nn.Module, Optimisation | None]] = [
        ("generator", build_on_meta(lambda: Wan(size.model, TorchOps)), course.optimisation),
        ("compressor", build_on_meta(lambda: HighRes(size.model.dim, fusion=fusion)), course.compressor),
        ("critic", build_on_meta(lambda: Wan(size.model, TorchOps)), course.critic),
        ("teacher", build_on_meta(lambda: Wan(size.model, TorchOps)).bfloat16(), None),
    ]
    yield f"Size {size.name}, clips of {size.clips.latent_frames} latent frames of {size.clips.width} x " + (
        f"{size.clips.height} pixels, blocks of {size.clips.frames_per_block}"
    )
    for name, network, optimisation in networks:
        numbers = sum(p.numel() for p in network.parameters())
        layers = f"{len(network.blocks)} layers, " if isinstance(network, Wan) else ""
        yield f"  {name}: {type(network).__name__}, {layers}{numbers:,} parameters, " + (
            f"learns at {optimisation.learning_rate:g}" if optimisation else "frozen"
        )
    # A rollout keeps one step and the commit of each block: as many tokens as teacher forcing.
    passes = list(measured_passes(size).items())
    for kept in sorted({recompute, True}):
        yield str(plan_memory("Self-Forcing", networks, passes, samples=samples, ranks=ranks, recompute=kept))
