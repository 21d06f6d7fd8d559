"""Training presets as data: for each size the networks, clips, and the settings of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...cache.config import MINIATURE_MEMORY, Full, PackForcing, Policy, SinkWindow
from ...model.config import WAN_SIZES, WanConfig
from ...vae.config import VAEConfig
from .clips import Worlds
from .compressor import twin_memories
from .data import ClipShape
from .dmd import WAN_COMPRESSOR, WAN_CRITIC, WAN_GENERATOR
from .layouts import Layouts
from .learner import COMPRESSOR_EPS, Optimisation
from .self_forcing import PAPERS_MEMORY


@dataclass(frozen=True)
class Course:
    """A stage's optimisation, its steps and the batch of all ranks, with the noisy copies of each clip.

    `compressor` and `critic` are those of the networks that learn beside the stage's own.
    """

    optimisation: Optimisation
    steps: int
    batch: int
    noisy_copies: int = 1
    compressor: Optimisation | None = None
    critic: Optimisation | None = None


@dataclass(frozen=True)
class Size:
    """One size of everything. Without a `vae` the official one is given, and nothing of the toy world is used."""

    name: str
    model: WanConfig
    clips: ClipShape
    courses: Mapping[str, Course]
    vae: VAEConfig | None = None
    encoded_clips: int = 0
    """Clips of the toy world to encode."""
    worlds: Worlds | None = None
    """Of which worlds these are, and how often; None: as the toy world draws them by itself."""
    memory: Policy = PAPERS_MEMORY
    """What rollouts are made with."""
    twin_memories: tuple[Policy, ...] = ()
    """What blocks see in turn where compressed blocks are in view."""
    compressor_memories: tuple[PackForcing, ...] = ()
    """What blocks see in turn where the compressor learns alone."""
    layouts: Layouts | None = None
    """How clips are laid out for it; None: they stay as they are."""


# Of Self-Forcing's ratios, at rates for so small a network.
SMALL_RATE = replace(WAN_GENERATOR, learning_rate=5e-5)
SMALL_COMPRESSOR = Optimisation(1e-3, warmup=30, final_rate=0.05, eps=COMPRESSOR_EPS, average=0.995)

MINIATURE = Size(
    "miniature",
    WanConfig(dim=256, ffn_dim=512, num_layers=6, num_heads=2, text_dim=128, text_len=24),
    ClipShape(latent_frames=20, frames_per_block=4, width=128, height=64),
    {
        "vae": Course(Optimisation(2e-3, final_rate=0.02), steps=2700, batch=0),  # its phases have their own
        "teacher": Course(Optimisation(1.5e-3, matrices="muon", final_rate=0.05, average=0.998), 2600, 8),
        "causal": Course(Optimisation(1.5e-3, matrices="muon", final_rate=0.05, average=0.998), 2600, 8, 2),
        "twins": Course(
            Optimisation(1e-3, warmup=30, matrices="muon", final_rate=0.05, average=0.995),
            *(950, 8, 2),
            compressor=SMALL_COMPRESSOR,
        ),
        "distill": Course(Optimisation(2e-4, warmup=30, final_rate=0.05, average=0.99), 300, 8),
        "self-forcing": Course(
            *(SMALL_RATE, 360, 4),
            compressor=replace(WAN_COMPRESSOR, learning_rate=2e-4),
            critic=replace(WAN_CRITIC, learning_rate=SMALL_RATE.learning_rate / 5),
        ),
        "compressor": Course(replace(SMALL_COMPRESSOR, average=0.98), 800, 8),
    },
    VAEConfig(16, 16),
    encoded_clips=2048,
    memory=MINIATURE_MEMORY,
    twin_memories=(
        Full(),
        MINIATURE_MEMORY,
        SinkWindow(window_frames=16, sink_frames=8),
        # Two, then three of five blocks see compressed blocks, not one: the compressor's gradient is 2.4 and 3.9 times
        # as long.
        replace(MINIATURE_MEMORY, sink_frames=4),
        replace(MINIATURE_MEMORY, sink_frames=0),
    ),
    # A sink that shows the thing leaves the compressed blocks little to say: half of the steps on clips as they are
    # have none.
    compressor_memories=tuple(replace(MINIATURE_MEMORY, sink_frames=sink) for sink in (0, 8, 0, 4)),
    layouts=Layouts(tuple(replace(MINIATURE_MEMORY, sink_frames=sink) for sink in (8, 8, 4, 0))),
)

WAN_1_3B = Size(
    "1.3B",
    WAN_SIZES["1.3B"],
    ClipShape(latent_frames=20, frames_per_block=4, width=832, height=480),
    {
        "teacher": Course(Optimisation(1e-5, warmup=500, final_rate=1.0, weight_decay=0.01, average=0.999), 3000, 64),
        "causal": Course(Optimisation(1e-5, warmup=500, final_rate=1.0, weight_decay=0.01, average=0.999), 6000, 64),
        "twins": Course(
            Optimisation(5e-6, warmup=200, final_rate=1.0, weight_decay=0.01, average=0.99),
            *(3000, 64),
            compressor=Optimisation(1e-4, warmup=200, final_rate=1.0, eps=COMPRESSOR_EPS, average=0.99),
        ),
        "distill": Course(Optimisation(2e-6, warmup=0, final_rate=1.0, weight_decay=0.01, average=0.99), 3000, 64),
        # 600 updates of the generator, 3,000 of the critic.
        "self-forcing": Course(WAN_GENERATOR, 3600, 64, compressor=WAN_COMPRESSOR, critic=WAN_CRITIC),
        "compressor": Course(Optimisation(1e-4, final_rate=0.1, eps=COMPRESSOR_EPS, average=0.99), 3000, 16),
    },
    twin_memories=twin_memories(4),
    compressor_memories=tuple(memory for memory in twin_memories(4) if isinstance(memory, PackForcing)),
)

SIZES = {size.name: size for size in (MINIATURE, WAN_1_3B)}
