"""A small base of any block length, a folder of its clips, and the files of a checkpoint that a command can take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from packforcing_core.cache.config import PackForcing
from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.geometry import VideoGeometry
from packforcing_core.laboratory.training.learner import Optimisation
from packforcing_core.laboratory.training.selfmade.base import Base, learnt_memories
from packforcing_core.laboratory.training.selfmade.clips import Clips
from packforcing_core.laboratory.training.selfmade.stage import SelfmadeStage
from packforcing_core.miniature.load import TEXT
from packforcing_core.model.config import WanConfig
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.recipe.recipe import default_policy
from tests.small import CONFIG, GRID, small_context, small_model
from tests.vaes import TINY, random_vae

# A family of each block length.
FAMILY_OF = {1: "causal-forcing-framewise", 3: "self-forcing", 4: "miniature"}
PROMPTS = [f"prompt {number}" for number in range(3)]
FAST = Optimisation(1e-3, warmup=0, final_rate=1.0, average=0.5)


def small_base(frames_per_block: int, blocks: int | None = None) -> Base:
    family = FAMILIES[FAMILY_OF[frames_per_block]]
    blocks = blocks or {1: 8, 3: 4, 4: 4}[frames_per_block]
    clip = VideoGeometry(16 * GRID[1], 16 * GRID[0], 16.0, frames_per_block, blocks)
    memory = PackForcing(sink_frames=frames_per_block, recent_frames=frames_per_block, mid_span=0)
    return Base(Path("small.safetensors"), CONFIG, family, clip, default_policy(family), learnt_memories(memory))


def small_texts(prompts: Sequence[str]) -> Tensor:
    """A context [B, 8, text_dim] that only the prompt decides."""
    return torch.cat([small_context(seed=sum(map(ord, prompt))) for prompt in prompts])


def small_clips(folder: Path, base: Base, count: int, seed: int = 0) -> Clips:
    """`count` clips that the small model made."""
    clips = Clips(folder, base, PROMPTS, seed)
    for _ in clips.made(count, small_model(), random_vae(TINY), small_texts):
        pass
    return clips


def small_stage(clips: Clips, count: int, high_res, batch: int = 2, **settings) -> SelfmadeStage:
    return SelfmadeStage(small_model(), high_res, clips, small_texts, range(count), FAST, batch, **settings)


def write_checkpoint(folder: Path) -> dict[str, Path]:
    """Files of a checkpoint of unknown name, its VAE and its text encoder, as the command's options name them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = Wan(WanConfig(dim=128, ffn_dim=128, num_layers=1, num_heads=1, text_dim=128), TorchOps)
    files = {"checkpoint": folder / "tiny.safetensors", "vae": folder / "vae.safetensors", "text-encoder": TEXT}
    save_file(net.state_dict(), files["checkpoint"])
    save_file(random_vae(TINY).state_dict(), files["vae"])
    (folder / "prompts.txt").write_text("\n".join(("a red circle", "a blue square", "the view pans")))
    return files
