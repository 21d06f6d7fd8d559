"""Converts the families' LoRA files to the key names that ComfyUI's native LoRA loaders read for Wan."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PackForcingError
from .files import TensorFile, open_tensors
from .keys import choose_front, group_names, is_critic, is_lora_name
from .lora_names import made_for, native_name, width_of
from .recognition import recognise

# One half of a LoRA and the other.
_HALVES = {
    "lora_A.weight": "lora_B.weight",
    "lora_A": "lora_B",
    "lora_down.weight": "lora_up.weight",
    "lora.down.weight": "lora.up.weight",
}

# The metadata entry where diffusers stores the alpha of a LoRA without alpha tensors.
_ADAPTER_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class ConvertedLora:
    """The written LoRA: its number of tensors, and the transformer width that it fits (None: unknown)."""

    tensors: int
    width: int | None

    @property
    def made_for(self) -> str:
        return made_for(self.width)


def convert_lora(path: str | PathLike[str], output: str | PathLike[str], key: str | None = None) -> ConvertedLora:
    """Writes the LoRA in `path` to the safetensors file `output`, with native key names.

    Names become "diffusion_model.<layer>.lora_A.weight": prefixes of PEFT ("base_model.model."), top-level keys
    ("generator_lora"), training wrappers, and names of diffusers and kohya are converted. `<layer>.alpha` is kept;
    alpha divided by the rank is the strength. If diffusers' metadata, or PEFT's adapter_config.json beside the file,
    holds the alpha, it is written for every layer. Without an alpha the strength is 1, as for the families' own LoRAs,
    whose alpha equals their rank. If the file has several parts, one is used, in the order for checkpoints; `key`
    chooses another. A critic's LoRA is used only if `key` names it.

    Raises PackForcingError if the file has no LoRA, if it has tensors that the native loaders would ignore, or if
    `output` cannot be written.
    """
    path, output = Path(path), Path(output)
    file = open_tensors(path)
    names = choose_part(file, key)
    renamed: dict[str, str] = {}
    for name, there in names.items():
        new = _native_name(path, name)
        if new in renamed:
            raise PackForcingError(
                f"{path.name} has {new} twice, as {renamed[new]} and as {there}: expected a single adapter. "
                "Save only the one you want."
            )
        renamed[new] = there
    _check_halves(path, renamed)
    _check_alphas(file, renamed)
    alphas = described_alphas(file, renamed)
    _save(file, renamed, alphas, output)
    return ConvertedLora(
        len(renamed) + len(alphas), width_of({name: file.tensors[there] for name, there in renamed.items()})
    )


def choose_part(file: TensorFile, key: str | None) -> Mapping[str, str]:
    """The names of the part that holds a LoRA."""
    groups = group_names(file.tensors)
    fronts = [front for front, names in groups.items() if any(map(is_lora_name, names))]
    if key is not None:
        fronts = [front for front in fronts if key == front or key in front.split(".")]
    elif fronts and all(map(is_critic, fronts)):
        raise PackForcingError(
            f"{file.path.name} holds only the LoRA of a critic ({fronts[0]}), which is not used for sampling. "
            "To use it anyway, choose its top-level key."
        )
    apart = (there for group in groups.values() if not any(map(is_lora_name, group)) for there in group.values())
    stray = next((there for there in apart if there.endswith(("alpha", "dora_scale"))), None)
    if fronts and stray:
        raise PackForcingError(
            f"{file.path.name} holds {stray}, which belongs to no layer of a LoRA: it cannot be applied."
        )
    if not fronts:
        under = f" under {key!r}" if key else ""
        raise PackForcingError(f"{file.path.name} holds no LoRA{under}: expected names with lora_A and lora_B.")
    family = recognise(file.path, file.metadata, file.tensors).family
    return groups[choose_front(fronts, key, family.top_keys if family else ()) or fronts[0]]


def _native_name(path: Path, name: str) -> str:
    native = native_name(name)
    if native is None:
        images = re.search(r"[kv]_img|add_[kv]_proj|img_emb", name)
        why = ": this LoRA is of an image-to-video model" if images else ""
        raise PackForcingError(
            f"{path.name} holds {name}, which ComfyUI's LoRA loaders would ignore for a Wan2.1 T2V{why}; "
            "expected lora_A and lora_B (or lora_down and lora_up) of its layers, and their alpha. "
            "Merge such an adapter into its base with the software that trained it."
        )
    return native


def described_alphas(file: TensorFile, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The alpha of every layer by name, if the file's description has one and the layers have no alpha tensors."""
    found = _described_alpha(file)
    if found is None or any(name.endswith(".alpha") for name in names):
        return {}
    alpha, by_root = found
    ranks = {
        name.removesuffix(half).rstrip("."): file.tensors[there].shape[0]
        for name, there in names.items()
        for half in _HALVES
        if name.endswith(f".{half}")
    }
    return {
        f"{layer}.alpha": torch.tensor(alpha * (math.sqrt(rank) if by_root else 1.0)) for layer, rank in ranks.items()
    }


def _described_alpha(file: TensorFile) -> tuple[float, bool] | None:
    """(alpha, whether it is divided by the root of the rank) from diffusers' metadata or PEFT's file; None if neither
    has it.
    """
    beside = file.path.with_name("adapter_config.json")
    try:
        if _ADAPTER_METADATA in file.metadata:
            table = json.loads(file.metadata[_ADAPTER_METADATA])
            told = {key.rsplit(".", 1)[-1]: value for key, value in table.items()}
        elif file.path.name.startswith("adapter_model") and beside.is_file():
            told = json.loads(beside.read_text(encoding="utf-8"))
        else:
            return None
        if told.get("alpha_pattern") or told.get("rank_pattern"):
            raise PackForcingError(
                f"{file.path.name} has a separate alpha for each layer in its description, which is not supported. "
                "Merge the adapter into its base with the software that trained it."
            )
        return float(told["lora_alpha"]), bool(told.get("use_rslora"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, PackForcingError):
            raise
        raise PackForcingError(
            f"The description of {file.path.name} has no valid lora_alpha: {error!r:.200}."
        ) from error


def _check_halves(path: Path, names: Mapping[str, str]) -> None:
    for one, other in (*_HALVES.items(), *((up, down) for down, up in _HALVES.items())):
        for name in names:
            if name.endswith("." + one) and name.removesuffix(one) + other not in names:
                raise PackForcingError(f"{path.name} has {name} without its {other}: the file is damaged.")


def _check_alphas(file: TensorFile, names: Mapping[str, str]) -> None:
    for name, there in names.items():
        if name.endswith(".alpha") and file.tensors[there].elements != 1:
            raise PackForcingError(
                f"{file.path.name} has {name} of shape {list(file.tensors[there].shape)}; expected one number."
            )


def _save(file: TensorFile, names: Mapping[str, str], alphas: Mapping[str, Tensor], output: Path) -> None:
    tensors = file.load(names.values())
    # Copied: tensors that are mapped from the file, or share memory, cannot be written, nor can that file be replaced.
    copies = {name: tensors[there].clone().contiguous() for name, there in names.items()}
    try:
        if output.exists() and output.samefile(file.path):
            raise PackForcingError(f"{output} is the input file; choose another name for the output.")
        save_file({**copies, **alphas}, output)
    except (OSError, SafetensorError) as error:
        raise PackForcingError(f"{str(output)[:200]} cannot be written: {error}. Choose another place.") from error
