"""What is trained at which size: networks, clips and the steps of every stage, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..cache.config import Full, PackForcing, Policy, SinkWindow
from ..model.config import WAN_SIZES, WanConfig
from ..vae.config import VAEConfig
from .data import ClipShape
from .learner import Optimisation


@dataclass(frozen=True)
class Course:
    """A stage's optimisation, its steps and the batch of all ranks, with the noisy copies of each clip."""

    optimisation: Optimisation
    steps: int
    batch: int
    noisy_copies: int = 1


@dataclass(frozen=True)
class Size:
    """One size of everything. Without a `vae` the official one is given, and nothing of the little world is used."""

    name: str
    model: WanConfig
    clips: ClipShape
    courses: Mapping[str, Course]
    vae: VAEConfig | None = None
    encoded_clips: int = 0
    """Clips of the little world to encode."""
    twin_memories: tuple[Policy, ...] = ()
    """What blocks see in turn where twins are in view; none: the paper's memory and the full history."""


MINIATURE = Size(
    "miniature",
    WanConfig(dim=256, ffn_dim=512, num_layers=6, num_heads=2, text_dim=128, text_len=24),
    ClipShape(latent_frames=20, frames_per_block=4, width=128, height=64),
    {
        "vae": Course(Optimisation(2e-3, final_rate=0.02), steps=2700, batch=0),  # its phases have their own
        "teacher": Course(Optimisation(1.5e-3, matrices="muon", final_rate=0.05, average=0.998), 2600, 8),
        "causal": Course(Optimisation(1.5e-3, matrices="muon", final_rate=0.05, average=0.998), 2600, 8, 2),
        "twins": Course(Optimisation(1e-3, warmup=30, matrices="muon", final_rate=0.05, average=0.995), 950, 8, 2),
    },
    VAEConfig(16, 16),
    encoded_clips=2048,
    twin_memories=(
        Full(),
        PackForcing(sink_frames=8, recent_frames=4, top_k_blocks=4, mid_span=1),
        SinkWindow(window_frames=16, sink_frames=8),
        PackForcing(sink_frames=4, recent_frames=4, top_k_blocks=4, mid_span=1),
    ),
)

WAN_1_3B = Size(
    "1.3B",
    WAN_SIZES["1.3B"],
    ClipShape(latent_frames=20, frames_per_block=4, width=832, height=480),
    {
        "teacher": Course(Optimisation(1e-5, warmup=500, final_rate=1.0, weight_decay=0.01, average=0.999), 3000, 64),
        "causal": Course(Optimisation(1e-5, warmup=500, final_rate=1.0, weight_decay=0.01, average=0.999), 6000, 64),
        "twins": Course(Optimisation(5e-6, warmup=200, final_rate=1.0, weight_decay=0.01, average=0.99), 3000, 64),
    },
)

SIZES = {size.name: size for size in (MINIATURE, WAN_1_3B)}
