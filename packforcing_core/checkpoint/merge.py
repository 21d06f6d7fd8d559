"""Merging LoRAs into a checkpoint: checks that they fit before any work, then adds them to the weights.

W + strength (alpha / rank) B A for every layer; alpha is the rank unless the file says otherwise. Source: "LoRA:
Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), scaled as in PEFT and ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..model.config import WanConfig
from ..ranges import in_range
from .files import TensorFile, open_tensors
from .keys import expected_shapes
from .kinds import size_name
from .lora import choose_part, described_alphas
from .lora_names import lora_advice, made_for, native_name, width_of

_NAMED = re.compile(r"diffusion_model\.(?P<layer>.+?)\.(?P<kind>lora[_.](?:A|B|down|up)(?:\.weight)?|alpha)")
_KIND = {"A": "down", "B": "up"}


@dataclass(frozen=True)
class Lora:
    """A LoRA file: layer -> {"down", "up", "alpha": name in the file}; `unread` are tensors of other kinds."""

    file: TensorFile
    layers: Mapping[str, Mapping[str, str]]
    alphas: Mapping[str, Tensor]
    unread: tuple[str, ...]
    width: int | None

    @property
    def name(self) -> str:
        return self.file.path.name

    def fitting(self, config: WanConfig) -> list[str]:
        """The layers for which down and up multiply to the shape of the layer's weight in a transformer of
        these sizes.
        """
        shapes, fitting = expected_shapes(config), []
        for layer, there in self.layers.items():
            if {"down", "up"} <= there.keys():
                down, up = (self.file.tensors[there[half]].shape for half in ("down", "up"))
                whole = len(down) == len(up) == 2 and down[0] == up[1] and (up[0], down[1])
                if whole and whole == shapes.get(f"{layer}.weight"):
                    fitting.append(layer)
        return fitting


def open_lora(path: str | PathLike[str], key: str | None = None) -> Lora:
    """The names and shapes of a LoRA. Raises PackForcingError if the file has none or cannot be read."""
    file = open_tensors(path)
    names = choose_part(file, key)
    layers: dict[str, dict[str, str]] = {}
    unread: list[str] = []
    native: dict[str, str] = {}
    for name, there in names.items():
        official = native_name(name)
        found = _NAMED.fullmatch(official) if official else None
        if official is None or found is None:
            unread.append(there)
            continue
        kind = found["kind"].removesuffix(".weight").removeprefix("lora_").removeprefix("lora.")
        layers.setdefault(found["layer"], {})[_KIND.get(kind, kind)] = there
        native[official] = there
    width = width_of({name: file.tensors[there] for name, there in native.items()})
    return Lora(file, layers, described_alphas(file, native), tuple(unread), width)


def require_fit(lora: Lora, config: WanConfig) -> tuple[str, ...]:
    """Notes about LoRA tensors that fit no layer of this transformer. Raises PackForcingError if none of them fits."""
    fitting = lora.fitting(config)
    if not fitting:
        holds = next(iter(lora.unread or lora.file.tensors), "nothing")
        made = f"it was made for {made_for(lora.width)}" if lora.width else f"example: {holds!r}"
        raise PackForcingError(
            f"The LoRA {lora.name} matches no layer of this checkpoint, a Wan2.1 of {size_name(config)}: {made}. It "
            f"would change nothing. {lora_advice(config)}"
        )
    others = [*(layer for layer in lora.layers if layer not in fitting), *lora.unread]
    if not others:
        return ()
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return (f"The LoRA {lora.name}: {others[0]}{more} match no layer of this checkpoint and are ignored.",)


def merged(
    state_dict: Mapping[str, Tensor], loras: Sequence[tuple[Lora, float]], config: WanConfig
) -> dict[str, Tensor]:
    """The weights (official names) with each LoRA added at its strength, in their own dtypes; the sum is in float32."""
    weights = dict(state_dict)
    for lora, strength in loras:
        in_range("lora_strength", strength)
        for layer in lora.fitting(config):
            there = lora.layers[layer]
            tensors = lora.file.load(there.values())
            down, up = (tensors[there[half]].float() for half in ("down", "up"))
            alpha = tensors[there["alpha"]] if "alpha" in there else lora.alphas.get(f"diffusion_model.{layer}.alpha")
            scale = strength * (1.0 if alpha is None else alpha.item() / down.shape[0])
            name = f"{layer}.weight"
            weights[name] = torch.addmm(weights[name].float(), up, down, alpha=scale).to(weights[name].dtype)
    return weights


def named_lora(text: str) -> tuple[Path, float]:
    """ "style.safetensors@0.8" -> the file and its strength, 1 by default."""
    file, at, strength = text.rpartition("@")
    try:
        return (Path(file), float(strength)) if at else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0
