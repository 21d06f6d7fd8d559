"""A dry run of a training on the meta device, without memory: its networks, and the memory it would take."""

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
    """Lines that tell of Self-Forcing, the stage with the most networks: generator and compressor learn, a critic
    learns beside them, and a frozen teacher of their size judges.
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
    # Of a rollout, one step and the commit of each block are kept: as many tokens as teacher forcing holds.
    passes = list(measured_passes(size).items())
    for kept in sorted({recompute, True}):
        yield str(plan_memory("Self-Forcing", networks, passes, samples=samples, ranks=ranks, recompute=kept))
