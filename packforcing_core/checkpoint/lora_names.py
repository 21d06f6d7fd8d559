"""Names in LoRA files: the trainers' names for Wan's layers, and those that ComfyUI's native LoRA loaders read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from ..model.config import WAN_SIZES, WanConfig
from .files import TensorInfo
from .keys import expected_shapes, from_diffusers

# The suffixes that native loaders read after a layer's name: the two halves of a LoRA in each trainer's naming, and its
# alpha and similar values. PEFT inserts its adapter's name before "weight".
_PEFT = re.compile(r"(?P<layer>.+)\.(?P<half>lora_[AB])(\.[^.]+)?\.weight")
_NATIVE = re.compile(
    r"(?P<layer>.+)\.(?P<half>lora_(up|down|mid)\.weight|lora\.(up|down)\.weight|lora_[AB]"
    r"|alpha|dora_scale|reshape_weight|diff|diff_b|set_weight)"
)
# diffusers before it used PEFT: blocks.0.attn1.processor.to_q_lora.down.weight.
_PROCESSOR = re.compile(r"\.processor\.(to_[a-z]+)_lora\.")
_FLAT = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_(?P<layer>.+)")
_LAYER_NUMBER = re.compile(r"^blocks([._])\d+([._])")

_LARGEST = WAN_SIZES["14B"]
_IN_DIFFUSERS = {"self_attn": "attn1", "cross_attn": "attn2", "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}


def native_name(name: str) -> str | None:
    """The name under which the native loaders read a LoRA tensor; None if they would ignore it.

    `name` has no prefixes (see `keys.split_name`). Layers that a Wan2.1 T2V does not have give None.
    """
    name = _PROCESSOR.sub(r".\1.lora.", name).replace(".to_out.lora.", ".to_out.0.lora.")
    peft = _PEFT.fullmatch(name)
    found = peft or _NATIVE.fullmatch(name)
    if found is None:
        return None
    layer = _official_layer(found["layer"])
    if layer is None:
        return None
    return f"diffusion_model.{layer}.{found['half']}{'.weight' if peft else ''}"


def width_of(tensors: Mapping[str, TensorInfo]) -> int | None:
    """The transformer width that a LoRA with these native names was made for; None if unknown."""
    for name, info in tensors.items():
        down = re.search(r"\.(lora_A|lora_down|lora\.down)(\.weight)?$", name)
        if down and re.search(r"_attn\.[qkvo]\.|ffn\.0\.", name) and len(info.shape) == 2:
            return info.shape[1]
    return None


def made_for(width: int | None) -> str:
    """ "Wan2.1 1.3B" or the like."""
    known = {sizes.dim: f"Wan2.1 {name}" for name, sizes in WAN_SIZES.items()}
    return known.get(width, f"a Wan of width {width}") if width else "a Wan of unknown size"


def lora_advice(config: WanConfig) -> str:
    """What to do about a LoRA that does not fit a transformer of these sizes. LoRAs are published for Wan's own sizes
    only, so a smaller model, such as the demo's, has none.
    """
    if config.dim < min(sizes.dim for sizes in WAN_SIZES.values()):
        return "No LoRA fits a miniature such as the demo's: LoRAs are for the 1.3B checkpoints. Remove this one."
    return "Use a LoRA made for this model (for most checkpoints: Wan2.1 T2V 1.3B), or leave it out."


def _official_layer(layer: str) -> str | None:
    flat = _FLAT.fullmatch(layer)
    if flat:
        return _flat_layers().get(flat["layer"])
    official = from_diffusers(f"{layer}.").removesuffix(".")
    return official if _LAYER_NUMBER.sub("blocks.0.", official) in _layers() else None


@lru_cache(maxsize=1)
def _layers() -> frozenset[str]:
    """The modules and parameters of a Wan2.1 T2V; the first layer's stand for all layers."""
    names = (re.sub(r"\.(weight|bias)$", "", name) for name in expected_shapes(_LARGEST))
    return frozenset(name for name in names if not name.startswith("blocks.") or name.startswith("blocks.0."))


@lru_cache(maxsize=1)
def _flat_layers() -> dict[str, str]:
    """Official and diffusers' names with underscores instead of dots -> official names."""
    flat = {}
    for name in _layers():
        theirs = ".".join(_IN_DIFFUSERS.get(part, part) for part in name.split("."))
        theirs = theirs.replace("ffn.0", "ffn.net.0.proj").replace("ffn.2", "ffn.net.2")
        for number in range(_LARGEST.num_layers if name.startswith("blocks.") else 1):
            official = _LAYER_NUMBER.sub(f"blocks.{number}.", name)
            for spelt in (name, theirs):
                flat[_LAYER_NUMBER.sub(f"blocks.{number}.", spelt).replace(".", "_")] = official
    return flat
