"""Training presets as data: for each size the networks, the clips, and the settings of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...cache.config import MINIATURE_MEMORY, Full, PackForcing, Policy, SinkWindow
from ...miniature.load import FAMILY, MEMORY
from ...model.config import WAN_SIZES, WanConfig
from ...sampler.denoising import Denoising
from ...sampler.schedule import Schedule
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
    """The settings of a stage: its optimisation, number of steps, global batch size over all ranks, and noisy copies of
    each clip.

    `compressor` and `critic` are the optimisations of the networks that are trained together with the stage's own.
    """

    optimisation: Optimisation
    steps: int
    batch: int
    noisy_copies: int = 1
    compressor: Optimisation | None = None
    critic: Optimisation | None = None


@dataclass(frozen=True)
class Size:
    """All settings of one model size. Without a `vae` the official one has to be given, and the toy
    world is not used.
    """

    name: str
    model: WanConfig
    clips: ClipShape
    courses: Mapping[str, Course]
    vae: VAEConfig | None = None
    encoded_clips: int = 0
    """Number of toy world clips to encode."""
    worlds: Worlds | None = None
    """The mix of worlds of these clips; None for the toy world's own mix."""
    memories: tuple[Policy, ...] = (PAPERS_MEMORY,)
    """The KV cache policies that rollouts cycle through."""
    first_block: Schedule | None = None
    """The sampler's steps for the first block, if they differ from those of the other blocks."""
    twin_memories: tuple[Policy, ...] = ()
    """The policies that teacher forcing with compressed blocks cycles through."""
    compressor_memories: tuple[PackForcing, ...] = ()
    """The policies that the training of the compressor alone cycles through."""
    layouts: Layouts | None = None
    """The layouts of that training; None to use clips in their own order."""
    joint_layouts: Layouts | None = None
    """The layouts in which model and compressor are trained together."""


# Self-Forcing's ratios of learning rates, at a rate for a small network.
SMALL_RATE = replace(WAN_GENERATOR, learning_rate=5e-5)
SMALL_COMPRESSOR = Optimisation(1e-3, warmup=30, final_rate=0.05, eps=COMPRESSOR_EPS, average=0.995)

MINIATURE = Size(
    "miniature",
    WanConfig(dim=256, ffn_dim=512, num_layers=6, num_heads=2, text_dim=128, text_len=24),
    ClipShape(latent_frames=20, frames_per_block=4, width=128, height=64),
    {
        "vae": Course(Optimisation(2e-3, final_rate=0.02), steps=2700, batch=0),  # its phases define the batch sizes
        "teacher": Course(Optimisation(1.5e-3, matrices="muon", final_rate=0.05, average=0.998), 2600, 8),
        "causal": Course(Optimisation(1.5e-3, matrices="muon", final_rate=0.05, average=0.998), 2600, 8, 2),
        "twins": Course(
            Optimisation(1e-3, warmup=30, matrices="muon", final_rate=0.05, average=0.995),
            *(950, 8, 2),
            compressor=SMALL_COMPRESSOR,
        ),
        "layouts": Course(
            Optimisation(3e-4, warmup=30, matrices="muon", final_rate=0.05, average=0.99),
            *(1600, 8, 2),
            compressor=replace(SMALL_COMPRESSOR, average=0.99),
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
    # In clips of five blocks only the last policy has more compressed blocks than it selects.
    memories=(
        *(replace(MEMORY, sink_frames=sink) for sink in (8, 4, 0)),
        replace(MEMORY, sink_frames=0, top_k_blocks=2),
    ),
    first_block=Denoising.of_family(FAMILY).first_block,
    twin_memories=(
        Full(),
        MINIATURE_MEMORY,
        SinkWindow(window_frames=16, sink_frames=8),
        # Two, then three of five blocks see compressed blocks instead of one: the compressor's gradient is 2.4 and 3.9
        # times as large.
        replace(MINIATURE_MEMORY, sink_frames=4),
        replace(MINIATURE_MEMORY, sink_frames=0),
    ),
    # If the sink shows the object, the compressed blocks add little. So half of the steps on clips in their own order
    # have no sink.
    compressor_memories=tuple(replace(MINIATURE_MEMORY, sink_frames=sink) for sink in (0, 8, 0, 4)),
    layouts=Layouts(tuple(replace(MINIATURE_MEMORY, sink_frames=sink) for sink in (8, 8, 4, 0))),
    joint_layouts=Layouts(
        tuple(replace(MEMORY, sink_frames=sink) for sink in (8, 8, 4, 0)), ordinary=0.5, departures=0.15
    ),
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
