"""What a file without a Wan transformer is, and what the user can do with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..model.config import WAN_SIZES, WanConfig
from .files import TensorFile, TensorInfo
from .keys import COMPRESSOR_FRONTS, is_lora_name, is_quantisation_name, is_transformer, split_name
from .lora_names import made_for, native_name, width_of


@dataclass(frozen=True)
class Kind:
    """`name` is for programs ("vae", "text encoder", "lora", "compressor", "foreign", "unknown"), the rest for
    people.
    """

    name: str
    title: str
    advice: str


_LORA_ADVICE = (
    "Load a base checkpoint (the family's base file, or the Wan2.1 T2V it was made for) "
    "and add this file with the native LoraLoaderModelOnly node after the loader."
)
_LORA_RENAME = (
    " Its key names are not those that the native node reads: convert it with `packforcing convert-lora FILE OUTPUT` "
    "(the README says under Install how to get this command)."
)

# (a name that only this kind has, kind)
_SIGNS = (
    (
        "decoder.middle.0.residual.0.gamma",
        Kind("vae", "a Wan VAE", "Put it into models/vae, or give it to `packforcing render --vae`."),
    ),
    (
        "decoder.conv_in.weight",
        Kind("vae", "a VAE of another family", "Expected the Wan2.1 VAE (16 latent channels)."),
    ),
    (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        Kind(
            "text encoder",
            "a T5 text encoder",
            "Put it into models/text_encoders and load it with the native CLIP loader, type wan; "
            "the command line takes a transformers folder of google/umt5-xxl.",
        ),
    ),
    (
        "blocks.0.attn.q.weight",
        Kind(
            "text encoder",
            "Wan's own umT5 file",
            "ComfyUI and transformers expect other tensor names: use the repacked umt5_xxl file for ComfyUI, "
            "or a transformers folder of google/umt5-xxl on the command line.",
        ),
    ),
)

_UNKNOWN_ADVICE = "Expected a Wan2.1 text-to-video (T2V) checkpoint of a Self-Forcing-style family."


def classify(groups: Mapping[str, Mapping[str, str]], file: TensorFile) -> Kind:
    """The kind of a file whose names, grouped by `keys.group_names`, hold no transformer."""
    names = [name for group in groups.values() for name in group]
    lora = [there for group in groups.values() for name, there in group.items() if is_lora_name(name)]
    if lora:
        return _lora(lora, file)
    for sign, kind in _SIGNS:
        if any(name == sign or name.endswith("." + sign) for name in names):
            return kind
    if names and all(name.startswith(COMPRESSOR_FRONTS) for name in names):
        advice = "Choose it in the loader's compressor widget, together with a checkpoint."
        return Kind("compressor", "compressor weights without a transformer", advice)
    some = ", ".join(names[:3]) or "no tensor at all"
    return Kind("unknown", f"of an unknown kind (it has {some})", _UNKNOWN_ADVICE)


def foreign(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], where: str) -> Kind | None:
    """A model related to Wan that cannot be sampled here; None for any other file.

    `names` and `shapes` are those of one part with official names, `where` is the file's path.
    """
    names = list(names)
    patch = shapes.get("patch_embedding.weight", ())
    if len(patch) == 5 and patch[1] == 48:
        longlive = ", as LongLive 2.0 5B is" if re.search(r"long[-_ ]?live", where.lower()) else ""
        return Kind(
            "foreign",
            f"a Wan2.2 TI2V-5B of 48 latent channels{longlive}",
            "It uses another VAE with other latents; expected a Wan2.1 T2V (16 channels). For LongLive use the 1.0 "
            "file.",
        )
    if any(name.endswith(".int8_weight") for name in names):
        return Kind(
            "foreign",
            "a TurboDiffusion file, quantised to int8 (int8_weight and scale)",
            "Its scales are not supported, and it generates the whole clip at once; expected an autoregressive Wan2.1.",
        )
    if any(".base_layer." in name for name in names):
        return Kind(
            "foreign",
            "a transformer with an unmerged LoRA (PEFT's base_layer and lora_A)",
            "Get the merged file (RAVEN's is cmgrpo_raven_merge.pt), or merge it with the software that trained it.",
        )
    attention = {name.split(".", 3)[3] for name in names if name.startswith("blocks.0.self_attn.")}
    if attention and "k.weight" not in attention and is_transformer(names):
        return Kind(
            "foreign",
            f"a Wan with another self-attention, as VideoMLA has (it has {', '.join(sorted(attention)[:3])}, but no k)",
            "Its keys and values are not Wan's, and the KV cache does not support them; expected a Wan2.1 T2V.",
        )
    return None


def quantisation(names: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str | None:
    """How a file is quantised, from its scales and markers; `names` are those of one part, with official names."""
    rows = [info for name, info in names.items() if name.endswith(".weight_scale") and info.elements > 1]
    if "_quantization_metadata" in metadata or any(name.endswith("comfy_quant") for name in names):
        return "quantised as ComfyUI writes it (comfy_quant)"
    if rows:
        dtypes = {info.dtype for name, info in names.items() if f"{name}_scale" in names}
        return f"quantised to {' and '.join(sorted(dtypes))} with one weight_scale per row, as LightX2V writes it"
    if any(map(is_quantisation_name, names)):
        return "quantised to fp8 with one scale per weight"
    return None


def size_name(config: WanConfig) -> str:
    """ "1.3B" or the like for a known size, else width and number of layers."""
    known = (name for name, sizes in WAN_SIZES.items() if sizes == config)
    return next(known, f"width {config.dim} with {config.num_layers} layers")


def _lora(names: list[str], file: TensorFile) -> Kind:
    downs = [name for name in names if "lora_A" in name or "down" in name]
    ranks = {file.tensors[name].shape[0] for name in downs if file.tensors[name].shape}
    rank = f" of rank {' and '.join(map(str, sorted(ranks)))}" if ranks else ""
    official = {native_name(split_name(name)[1]): file.tensors[name] for name in names}
    width = width_of({name: info for name, info in official.items() if name})
    fits = f" for {made_for(width)}" if width else ""
    stock = all(name.startswith(("diffusion_model.", "lora_unet_blocks_")) for name in names)
    return Kind("lora", f"a LoRA{rank} without its base{fits}", _LORA_ADVICE + ("" if stock else _LORA_RENAME))
