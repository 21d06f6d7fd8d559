"""The base checkpoint of a compressor's training, and all checks that are possible before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ....cache.config import MINIATURE_MEMORY, PackForcing, Policy
from ....cache.policies.packforcing import FULL_SPAN
from ....cache.policy import TRAINED_FRAMES
from ....checkpoint.families import FAMILIES, Family, by_name
from ....checkpoint.files import open_tensors
from ....checkpoint.kinds import size_name
from ....checkpoint.load import inspect
from ....checkpoint.recognition import metadata_says_causal
from ....errors import PackForcingError
from ....geometry import VideoGeometry
from ....miniature import world
from ....model.config import WanConfig
from ....recipe.recipe import Recipe, default_policy
from ....rope import GridRope
from ....sampler.rollout import Denoising
from ....vae.config import VAEConfig

WAN_SIZE, MINIATURE_SIZE = (832, 480), (world.WIDTH, world.HEIGHT)
"""Width and height of clips in pixels."""
FPS = 16.0
SHORTEST_BLOCKS = 4


@dataclass(frozen=True)
class Base:
    """A base checkpoint: its file, configuration and family, and the shape of the clips [1, 16, latent frames, h, w]
    that it generates.

    `memory` is the KV cache policy that clips are generated with, `learnt` the policies that training steps cycle
    through, and `asked` the policy of the held-out score.
    """

    path: Path
    config: WanConfig
    family: Family
    clip: VideoGeometry
    memory: Policy
    learnt: tuple[PackForcing, ...]

    @property
    def asked(self) -> PackForcing:
        return self.learnt[0]

    @property
    def denoising(self) -> Denoising:
        return Denoising.of_family(self.family)

    @property
    def title(self) -> str:
        return f"{self.path.name}: Wan2.1 {size_name(self.config)}, {self.family.title}"

    def recipe(self, seed: int) -> Recipe:
        """Returns the recipe of the clip with noise seed `seed`."""
        return Recipe(self.clip, self.memory, self.denoising, seed)

    def rope(self, device: torch.device | str) -> GridRope:
        return GridRope(self.config.head_dim, self.clip.grid, device)


def read_base(
    path: Path,
    preset: str | None = None,
    size: tuple[int, int] | None = None,
    clip_frames: int | None = None,
    kv_int8: bool = False,
) -> Base:
    """Reads what a checkpoint file is, without loading its tensors.

    `preset` names the family where the file does not identify it. `size` is (width, height) in pixels. `clip_frames` is
    the number of latent frames of a clip, rounded down to whole blocks and at most TRAINED_FRAMES. `kv_int8` stores the
    KV cache of rollouts in int8.

    Raises PackForcingError for a file that is no transformer, that is bidirectional or quantised, or whose family is
    unknown and not given by `preset`, and for clips too short to have compressed blocks.
    """
    found = inspect(path)
    if not found.usable or found.config is None:
        raise PackForcingError(f"{found.path.name} is {found.title}. {' '.join((*found.problems, found.advice))}")
    family = by_name(preset) if preset else found.family
    if family is None:
        raise PackForcingError(
            f"{found.path.name} is not of a known family: neither its name nor its metadata says how it is sampled. "
            f"Choose the family that it was trained from with --preset: {', '.join(FAMILIES)}."
        )
    if not family.autoregressive and not metadata_says_causal(open_tensors(path).metadata):
        raise PackForcingError(
            f"{found.path.name} is a bidirectional model ({family.title}): it generates whole clips at once, not block "
            "by block, and has no past to compress. Give a block-by-block checkpoint (Self-Forcing, Causal-Forcing, "
            "LongLive ...), or name its --preset if it is one."
        )
    small = family is FAMILIES["miniature"]
    width, height = size or (MINIATURE_SIZE if small else WAN_SIZE)
    frames = family.frames_per_block
    blocks = min(clip_frames or TRAINED_FRAMES, TRAINED_FRAMES) // frames
    clip = VideoGeometry(width, height, FPS, frames, max(1, blocks))
    memory = default_policy(family)
    in_8_bits: dict[str, Any] = {"kv_int8": "all"}  # A knob of every policy.
    learnt = learnt_memories(MINIATURE_MEMORY if small else PackForcing(mid_span=FULL_SPAN))
    base = Base(path, found.config, family, clip, replace(memory, **in_8_bits) if kv_int8 else memory, learnt)
    _require_room_for_twins(base)
    return base


def learnt_memories(memory: PackForcing) -> tuple[PackForcing, ...]:
    """Returns the policies to train for: `memory`; the same with at most 3 blocks selected per layer; and that without
    a sink, so that nothing of the clip stays in view at full resolution as a sink.
    """
    few = replace(memory, top_k_blocks=min(3, memory.top_k_blocks))
    return memory, few, replace(few, sink_frames=0)


def _require_room_for_twins(base: Base) -> None:
    _ = base.recipe(0)  # raises if the policy does not fit the block length
    recent = base.asked.partitions(base.clip.frames_per_block).recent_frames // base.clip.frames_per_block
    least = max(SHORTEST_BLOCKS, recent + 3)
    if base.clip.blocks < least:
        frames = base.clip.frames_per_block
        raise PackForcingError(
            f"Clips of {base.clip.blocks} blocks of {frames} latent frames are too short to have compressed blocks; "
            f"expected at least {least} blocks: --clip-frames {least * frames} or more."
        )


def require_vae(path: Path) -> VAEConfig:
    """Returns the configuration of a Wan VAE, read from its tensors' names and shapes. Raises PackForcingError for any
    other VAE.
    """
    return VAEConfig.from_state_dict(open_tensors(path).tensors)


def require_prompts(prompts: Sequence[str], source: str) -> list[str]:
    """Returns the prompts without empty lines and duplicates, in order. Raises PackForcingError if fewer than two are
    left.
    """
    found = list(dict.fromkeys(text for line in prompts if (text := " ".join(line.split()))))
    if len(found) < 2:
        raise PackForcingError(f"{source} has {len(found)} prompts; expected two or more, one per line.")
    return found
