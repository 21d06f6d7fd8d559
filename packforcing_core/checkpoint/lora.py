"""LoRA files of the families, renamed to what ComfyUI's stock LoRA loaders read for Wan."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from safetensors.torch import save_file

from ..errors import PackForcingError
from .files import open_tensors
from .keys import group_names, is_lora_name

# PEFT puts its adapter's name between "lora_A" and "weight".
_ADAPTER = ".default."


def convert_lora(path: str | PathLike[str], output: str | PathLike[str], key: str | None = None) -> int:
    """Writes `path`'s LoRA to the safetensors file `output`; returns how many tensors it has.

    Names become "diffusion_model.<layer>.lora_A.weight": PEFT's prefixes ("base_model.model."), top-level keys
    ("generator_lora") and training wrappers come off. Without an alpha in the file the scale is 1, as it is for
    the families' own LoRAs, whose alpha equals their rank. `key` chooses a top-level key; critics are never taken
    unasked. Raises PackForcingError where there is no LoRA in the file.
    """
    file = open_tensors(path)
    renamed: dict[str, str] = {}
    for front, names in group_names(file.tensors).items():
        segments = front.split(".")
        if key in segments or (key is None and "critic_lora" not in segments):
            renamed |= {f"diffusion_model.{_plain(name)}": names[name] for name in names if is_lora_name(name)}
    if not renamed:
        raise PackForcingError(
            f"{Path(path).name} holds no LoRA{f' under {key!r}' if key else ''}: expected names with lora_A and lora_B."
        )
    tensors = file.load(renamed.values())
    save_file({name: tensors[there].contiguous() for name, there in renamed.items()}, Path(output))
    return len(renamed)


def _plain(name: str) -> str:
    return name.replace(_ADAPTER, ".")
