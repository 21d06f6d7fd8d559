"""LoRA files of the families, renamed to what ComfyUI's stock LoRA loaders read for Wan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import PackForcingError
from ..model.config import WAN_SIZES
from .files import TensorFile, open_tensors
from .keys import choose_front, expected_shapes, group_names, is_critic, is_lora_name
from .recognition import recognise

# What the stock loaders read beside a layer's name: the halves of its LoRA as one of the trainers names them, and what
# changes their strength or stands beside them. PEFT puts its adapter's name before "weight".
_PEFT = re.compile(r"(?P<layer>.+)\.(?P<half>lora_[AB])(\.[^.]+)?\.weight")
_STOCK = re.compile(
    r"(?P<layer>.+)\.(lora_(up|down|mid)\.weight|lora\.(up|down)\.weight|lora_[AB]"
    r"|alpha|dora_scale|reshape_weight|diff|diff_b|set_weight)"
)

# One half of a LoRA -> the other half.
_HALVES = {
    "lora_A.weight": "lora_B.weight",
    "lora_A": "lora_B",
    "lora_down.weight": "lora_up.weight",
    "lora.down.weight": "lora.up.weight",
}

# Names whose dots are underscores: the stock loaders read them without a prefix.
_FLAT = ("lora_unet_", "lycoris_")
_LAYERS = tuple(dict.fromkeys(name.split(".")[0] + "." for name in expected_shapes(WAN_SIZES["1.3B"])))


def convert_lora(path: str | PathLike[str], output: str | PathLike[str], key: str | None = None) -> int:
    """Writes `path`'s LoRA to the safetensors file `output`; returns how many tensors it has.

    Names become "diffusion_model.<layer>.lora_A.weight": PEFT's prefixes ("base_model.model."), top-level keys
    ("generator_lora") and training wrappers come off. `<layer>.alpha` stays, and divided by the rank is the strength;
    without it the strength is 1, as it is for the families' own LoRAs, whose alpha equals their rank. Of several parts
    one is taken, by the order for checkpoints; `key` chooses another, and a critic's is never taken unasked.
    Raises PackForcingError where there is no LoRA in the file, where it has tensors that the stock loaders would
    leave out, and where `output` cannot be written.
    """
    path, output = Path(path), Path(output)
    file = open_tensors(path)
    names = _choose_part(file, key)
    renamed: dict[str, str] = {}
    for name, there in names.items():
        new = _stock_name(path, name)
        if new in renamed:
            raise PackForcingError(
                f"{path.name} has {new} twice, as {renamed[new]} and as {there}: expected one adapter. "
                "Save the one you want alone."
            )
        renamed[new] = there
    _check_halves(path, renamed)
    _check_alphas(file, renamed)
    _save(file, renamed, output)
    return len(renamed)


def _choose_part(file: TensorFile, key: str | None) -> Mapping[str, str]:
    """The names of one part that holds a LoRA."""
    groups = group_names(file.tensors)
    fronts = [front for front, names in groups.items() if any(map(is_lora_name, names))]
    if key is not None:
        fronts = [front for front in fronts if key == front or key in front.split(".")]
    elif fronts and all(map(is_critic, fronts)):
        raise PackForcingError(
            f"{file.path.name} holds no LoRA but a critic's ({fronts[0]}), which is of no use for sampling. "
            "Choose it with its top-level key if you want it all the same."
        )
    apart = (there for group in groups.values() if not any(map(is_lora_name, group)) for there in group.values())
    stray = next((there for there in apart if there.endswith(("alpha", "dora_scale"))), None)
    if fronts and stray:
        raise PackForcingError(f"{file.path.name} holds {stray} apart from any layer of a LoRA: it cannot be applied.")
    if not fronts:
        under = f" under {key!r}" if key else ""
        raise PackForcingError(f"{file.path.name} holds no LoRA{under}: expected names with lora_A and lora_B.")
    family = recognise(file.path, file.metadata, file.tensors).family
    return groups[choose_front(fronts, key, family.top_keys if family else ())]


def _stock_name(path: Path, name: str) -> str:
    peft = _PEFT.fullmatch(name)
    match = peft or _STOCK.fullmatch(name)
    if match and match["layer"].startswith(_FLAT):
        return name
    if not match or not match["layer"].startswith(_LAYERS):
        raise PackForcingError(
            f"{path.name} holds {name}, which ComfyUI's LoRA loaders would leave out for a Wan2.1 T2V; "
            "expected lora_A and lora_B (or lora_down and lora_up) of its layers, and their alpha. "
            "Merge such an adapter into its base where it was trained."
        )
    return f"diffusion_model.{peft['layer']}.{peft['half']}.weight" if peft else f"diffusion_model.{name}"


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


def _save(file: TensorFile, names: Mapping[str, str], output: Path) -> None:
    tensors = file.load(names.values())
    # The file may be mapped into memory, and parts of it shared: neither can be written from, or over.
    copies = {name: tensors[there].clone().contiguous() for name, there in names.items()}
    try:
        if output.exists() and output.samefile(file.path):
            raise PackForcingError(f"{output} is the LoRA itself; choose another name for the converted one.")
        save_file(copies, output)
    except (OSError, SafetensorError) as error:
        raise PackForcingError(f"{str(output)[:200]} cannot be written: {error}. Choose another place.") from error
