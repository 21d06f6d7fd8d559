"""The networks that a stage begins with: those that are given, else those that stages before it left in the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ...checkpoint.build import build_model
from ...checkpoint.load import read_checkpoint
from ...compressor.high_res import HighRes, build_high_res
from ...compressor.weights import load_compressor
from ...errors import PackForcingError
from ...model.config import WanConfig
from ...model.ops import TorchOps, build_on_meta
from ...model.wan import Wan
from ...vae.load import load_vae
from ...vae.wan_vae import WanVAE
from .setup import Setup
from .wan import TrainedWan

MODELS_BEFORE: Mapping[str, tuple[str, ...]] = {
    "causal": ("teacher",),
    "twins": ("causal",),
    "distill": ("twins", "causal"),
    "self-forcing": ("distill", "twins", "causal"),
    "compressor": ("self-forcing", "distill", "twins", "causal"),
}
"""Whose model a stage begins with: of these the first that is done."""
COMPRESSORS_BEFORE = "twins-compressor", "compressor"


def model_before(setup: Setup, stage: str) -> Path | None:
    """The file that a stage's model begins with, None where there is none."""
    if setup.weights:
        return setup.weights
    return next(filter(Path.exists, map(setup.exported, MODELS_BEFORE.get(stage, ()))), None)


def require_model_before(setup: Setup, stage: str) -> Path:
    """`model_before`; PackForcingError, which says what makes one, where there is none."""
    path = model_before(setup, stage)
    if path is None:
        stages = MODELS_BEFORE[stage]
        files = ", ".join(f"{name}.safetensors" for name in stages)
        raise PackForcingError(
            f"Stage '{stage}' begins with a causal model, and {setup.folder} has none of {files}. "
            f"`{setup.command(stages[-1])}` makes one; or give a file as --weights."
        )
    return path


def compressor_before(setup: Setup, *stems: str) -> Path | None:
    """The compressor to begin with: the given one, else the first of `stems` in the folder; None for an untrained."""
    return setup.compressor or next(filter(Path.exists, map(setup.exported, stems)), None)


def require_teacher(setup: Setup) -> Path:
    """The bidirectional model that judges rollouts; PackForcingError, which says what makes one, without."""
    path = setup.teacher or setup.exported("teacher")
    if not path.exists():
        raise PackForcingError(
            f"{path} is missing, the bidirectional model that judges: `{setup.command('teacher')}` makes one; or give "
            "a file as --teacher."
        )
    return path


def build_wan(setup: Setup, path: Path | None) -> TrainedWan:
    """A Wan to train, of the size's own sizes, with the weights of `path`; without one, at a size of the toy world,
    random ones.
    """
    config = setup.size.model
    if path:
        net = wan_from_file(path, config)
    elif setup.size.vae is None:
        raise PackForcingError(f"Training at size {setup.size.name} begins with a model: give its file as --weights.")
    else:
        net = random_wan(config, setup.seed)
    return trained_wan(setup, net, config)


def trained_wan(setup: Setup, net: nn.Module, config: WanConfig) -> TrainedWan:
    return TrainedWan(
        net.to(setup.device),
        config,
        recompute=setup.recompute,
        dtype=setup.precision,
        device=setup.device,
        attention=setup.attention,
    )


def build_frozen_wan(setup: Setup, path: Path) -> TrainedWan:
    """A Wan that does not learn, in the setup's precision; it may be of other sizes than the one that does."""
    net = build_model(read_checkpoint(path), setup.device, setup.precision).net
    return trained_wan(setup, net, _config_of(setup, path))


def build_critic(setup: Setup, path: Path) -> TrainedWan:
    """A bidirectional Wan to train, of the sizes of its file."""
    config = _config_of(setup, path)
    return trained_wan(setup, wan_from_file(path, config), config)


def _config_of(setup: Setup, path: Path) -> WanConfig:
    """The sizes of a checkpoint; PackForcingError where it reads other texts than the size's."""
    own, found = setup.size.model, replace(read_checkpoint(path).config, text_len=setup.size.model.text_len)
    if found.text_dim != own.text_dim:
        raise PackForcingError(
            f"{path.name} reads texts of {found.text_dim} numbers a word; at size {setup.size.name} these have "
            f"{own.text_dim}. Give a model of the same text encoder."
        )
    return found


def wan_from_file(path: Path, config: WanConfig) -> Wan:
    """A checkpoint's weights in float32; PackForcingError where it is of another size than `config`."""
    checkpoint = read_checkpoint(path)
    if replace(checkpoint.config, text_len=config.text_len) != config:
        raise PackForcingError(f"{path.name} has sizes {checkpoint.config}; expected {config}. Choose its --size.")
    net = build_on_meta(lambda: Wan(config, TorchOps))
    net.load_state_dict({name: t.float() for name, t in checkpoint.state_dict.items()}, assign=True)
    return net


@torch.no_grad()
def random_wan(config: WanConfig, seed: int) -> Wan:
    """Weights to begin with: projections after Glorot, no flow at all at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Wan(config, TorchOps)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    nn.init.zeros_(cast("nn.Linear", net.head.head).weight)
    return net


def build_branch(setup: Setup, path: Path | None) -> HighRes:
    """The compressor's trained branch in float32: with the weights of `path`, or an untrained one of the setup's
    fusion. PackForcingError where the file's fusion is another than the one that is asked for.
    """
    size = setup.size
    if path is None:
        return build_high_res(size.model.dim, setup.seed, setup.fusion or "add").to(setup.device)
    loaded = load_compressor(path, size.model, size.clips.frames_per_block, device=setup.device, dtype=torch.float32)
    found = loaded.high_res.fusion
    if setup.fusion not in (None, found):
        raise PackForcingError(
            f"Got --fusion {setup.fusion}, and the compressor to begin with, {path}, has fusion '{found}'. Leave it "
            "out, or begin with another compressor or in another folder."
        )
    return loaded.high_res.requires_grad_(True).train()


def load_training_vae(setup: Setup) -> WanVAE:
    """The VAE to encode clips and to decode rollouts with: the given one, or that of the folder."""
    path = setup.vae or setup.exported("vae")
    if not path.exists():
        made = "" if setup.size.vae is None else f"`{setup.command('vae')}` trains one, or "
        raise PackForcingError(f"{path} is missing: {made}give one as --vae.")
    return load_vae(path, device=setup.device, dtype=torch.float32)
