"""A size of everything on which a command takes seconds, and the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from packforcing_core.cache.config import Full, PackForcing
from packforcing_core.cli.main import main
from packforcing_core.laboratory.training import presets
from packforcing_core.laboratory.training.data import ClipShape
from packforcing_core.laboratory.training.learner import Optimisation
from packforcing_core.laboratory.training.presets import MINIATURE, Course
from packforcing_core.model.config import WanConfig
from packforcing_core.vae.config import VAEConfig

# A rate that does not fall depends on no total, so a training of fewer steps is the beginning of a longer one.
STEADY = Optimisation(1e-3, warmup=0, final_rate=1.0, average=0.9)
MEMORY = PackForcing(sink_frames=0, recent_frames=2, mid_span=0)  # the last of three blocks sees the twin of the first
TINY = replace(
    MINIATURE,
    name="tiny",
    # A compressor of width 128 has a layer of 11 channels, of which PyTorch's bf16 convolution makes NaN on CPUs.
    model=WanConfig(dim=256, ffn_dim=128, num_layers=1, num_heads=2, text_dim=16, text_len=24),
    clips=ClipShape(latent_frames=6, frames_per_block=2, width=128, height=64),
    courses={
        **MINIATURE.courses,
        "distill": Course(STEADY, 3, 2),
        "self-forcing": replace(MINIATURE.courses["self-forcing"], batch=1),
        "compressor": Course(STEADY, 3, 2),
    },
    memories=(MEMORY,),
    twin_memories=(Full(), MEMORY),
    compressor_memories=(MEMORY,),
    layouts=None,
    vae=VAEConfig(8, 8, num_res_blocks=1),
)


@contextmanager
def tiny_size() -> Iterator[None]:
    """The command knows the size "tiny" as long."""
    presets.SIZES["tiny"] = TINY
    try:
        yield
    finally:
        del presets.SIZES["tiny"]


def train(stage: str, folder: Path, *more: str) -> int:
    """`packforcing train` of the tiny size."""
    return main(["train", stage, "--folder", str(folder), "--size", "tiny", *more])
