"""Loads the networks that a stage starts from: given files, or the exports of earlier stages in the folder."""

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
    "layouts": ("twins", "causal"),
    "distill": ("layouts", "twins", "causal"),
    "self-forcing": ("distill", "layouts", "twins", "causal"),
    "compressor": ("self-forcing", "distill", "layouts", "twins", "causal"),
}
"""The earlier stages whose model a stage can start from. The first one with an exported file is used."""
COMPRESSORS_BEFORE = "layouts-compressor", "twins-compressor", "compressor"


def model_before(setup: Setup, stage: str) -> Path | None:
    """Returns the file that a stage's model starts from; None if there is none."""
    if setup.weights:
        return setup.weights
    return next(filter(Path.exists, map(setup.exported, MODELS_BEFORE.get(stage, ()))), None)


def require_model_before(setup: Setup, stage: str) -> Path:
    """Same as `model_before`. If there is no file, raises PackForcingError, which says how to train one."""
    path = model_before(setup, stage)
    if path is None:
        stages = MODELS_BEFORE[stage]
        files = ", ".join(f"{name}.safetensors" for name in stages)
        raise PackForcingError(
            f"Stage '{stage}' starts from a causal model, but {setup.folder} has none of {files}. "
            f"`{setup.command(stages[-1])}` makes one, or pass a file as --weights."
        )
    return path


def compressor_before(setup: Setup, *stems: str) -> Path | None:
    """Returns the compressor to start from: the given file, else the first of `stems` in the folder, else None for an
    untrained one.
    """
    return setup.compressor or next(filter(Path.exists, map(setup.exported, stems)), None)


def require_teacher(setup: Setup) -> Path:
    """Returns the file of the bidirectional teacher, DMD's real score model. If it is missing, raises PackForcingError,
    which says how to train one.
    """
    path = setup.teacher or setup.exported("teacher")
    if not path.exists():
        raise PackForcingError(
            f"{path} is missing, the bidirectional teacher: `{setup.command('teacher')}` makes one, or pass "
            "a file as --teacher."
        )
    return path


def build_wan(setup: Setup, path: Path | None) -> TrainedWan:
    """Builds a trainable Wan of the setup's size with the weights in `path`; without a file, with random weights at a
    toy world size. Raises PackForcingError if there is no file at any other size.
    """
    config = setup.size.model
    if path:
        net = wan_from_file(path, config)
    elif setup.size.vae is None:
        raise PackForcingError(f"Training at size {setup.size.name} starts from a model: pass its file as --weights.")
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
    """Builds a frozen Wan in the setup's precision. Its size may differ from the trained one's."""
    net = build_model(read_checkpoint(path), setup.device, setup.precision).net
    return trained_wan(setup, net, _config_of(setup, path))


def build_critic(setup: Setup, path: Path) -> TrainedWan:
    """Builds a trainable bidirectional Wan of its file's size."""
    config = _config_of(setup, path)
    return trained_wan(setup, wan_from_file(path, config), config)


def _config_of(setup: Setup, path: Path) -> WanConfig:
    """Returns the configuration of a checkpoint. Raises PackForcingError if its text embeddings have another width than
    the setup's size.
    """
    own, found = setup.size.model, replace(read_checkpoint(path).config, text_len=setup.size.model.text_len)
    if found.text_dim != own.text_dim:
        raise PackForcingError(
            f"{path.name} needs text embeddings of width {found.text_dim}; at size {setup.size.name} the width is "
            f"{own.text_dim}. Use a model with the same text encoder."
        )
    return found


def wan_from_file(path: Path, config: WanConfig) -> Wan:
    """Loads a checkpoint's weights in float32. Raises PackForcingError if its configuration is not `config`."""
    checkpoint = read_checkpoint(path)
    if replace(checkpoint.config, text_len=config.text_len) != config:
        raise PackForcingError(f"{path.name} has sizes {checkpoint.config}; expected {config}. Choose its --size.")
    net = build_on_meta(lambda: Wan(config, TorchOps))
    net.load_state_dict({name: t.float() for name, t in checkpoint.state_dict.items()}, assign=True)
    return net


@torch.no_grad()
def random_wan(config: WanConfig, seed: int) -> Wan:
    """Returns a Wan with Glorot-initialised weights and a zero output layer, so that the initial flow is zero."""
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
    """Builds the compressor's trained branch in float32: with the weights of `path`, or an untrained one with the
    setup's fusion. Raises PackForcingError if the file's fusion differs from the requested one.
    """
    size = setup.size
    if path is None:
        return build_high_res(size.model.dim, setup.seed, setup.fusion or "add").to(setup.device)
    loaded = load_compressor(path, size.model, size.clips.frames_per_block, device=setup.device, dtype=torch.float32)
    found = loaded.high_res.fusion
    if setup.fusion not in (None, found):
        raise PackForcingError(
            f"Got --fusion {setup.fusion}, but the compressor to start from, {path}, has fusion '{found}'. Remove "
            "--fusion, or start from another compressor or in another folder."
        )
    return loaded.high_res.requires_grad_(True).train()


def load_training_vae(setup: Setup) -> WanVAE:
    """Loads the VAE that encodes clips and decodes rollouts: the given one, or that of the folder. Raises
    PackForcingError if there is neither.
    """
    path = setup.vae or setup.exported("vae")
    if not path.exists():
        made = "" if setup.size.vae is None else f"`{setup.command('vae')}` trains one, or "
        raise PackForcingError(f"{path} is missing: {made}pass one as --vae.")
    return load_vae(path, device=setup.device, dtype=torch.float32)
