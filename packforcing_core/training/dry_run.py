"""The whole of a training on the meta device, where nothing takes memory: its networks, and what it would take."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..compressor.high_res import HighRes
from ..model.ops import TorchOps, build_on_meta
from ..model.wan import Wan
from .learner import Optimisation
from .memory import plan_memory
from .presets import Size
from .stages import measured_passes

# Self-Forcing's rates (arXiv 2506.08009, its code); here only whether there are averages and moments counts.
GENERATOR = Optimisation(2e-6, average=0.99, average_from=200)
COMPRESSOR = Optimisation(2e-6, average=0.99, average_from=200)
CRITIC = Optimisation(4e-7)


def dry_run(size: Size, ranks: int, recompute: bool) -> Iterator[str]:
    """Lines that tell of distribution matching, the stage with the most networks: generator and compressor learn, a
    critic learns beside them, and a frozen teacher judges.
    """
    networks: list[tuple[str, nn.Module, Optimisation | None]] = [
        (name, build_on_meta(lambda: Wan(size.model, TorchOps)), optimisation)
        for name, optimisation in (("generator", GENERATOR), ("critic", CRITIC), ("teacher", None))
    ]
    networks.insert(1, ("compressor", build_on_meta(lambda: HighRes(size.model.dim)), COMPRESSOR))
    yield f"Size {size.name}, clips of {size.clips.latent_frames} latent frames of {size.clips.width} x " + (
        f"{size.clips.height} pixels, blocks of {size.clips.frames_per_block}"
    )
    for name, network, optimisation in networks:
        numbers = sum(p.numel() for p in network.parameters())
        layers = f"{len(network.blocks)} layers, " if isinstance(network, Wan) else ""
        yield f"  {name}: {type(network).__name__}, {layers}{numbers:,} parameters, " + (
            "learns" if optimisation else "frozen"
        )
    # Of a rollout, one step and the commit of each block are kept: as many tokens as teacher forcing holds.
    passes = list(measured_passes(size).items())
    for kept in sorted({recompute, True}):
        yield str(plan_memory("Distribution matching", networks, passes, ranks=ranks, recompute=kept))
