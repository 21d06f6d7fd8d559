"""Small random checkpoints in the exact layouts of real files: every family's, ComfyUI's, LoRAs, a umT5 folder."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from packforcing_core.checkpoint.keys import expected_shapes
from packforcing_core.model.config import WanConfig

# The smallest that every loader reads, ours and ComfyUI's: one head of 128.
SMALL = WanConfig(dim=128, ffn_dim=256, num_layers=2, num_heads=1, text_dim=64)
# As small, with text as wide as umT5-XXL's: what a stock ComfyUI builds whatever the file says.
SMALL_STOCK = WanConfig(dim=128, ffn_dim=256, num_layers=2, num_heads=1)

CAUSAL_METADATA = {"config": json.dumps({"transformer": {"causal_ar": True}})}


def wan_state_dict(config: WanConfig = SMALL, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under official names: activations stay bounded, attention is uneven, the output is not zero."""
    return {name: _weight(name, shape, seed).to(dtype) for name, shape in expected_shapes(config).items()}


def _weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    # A generator for each name: a tensor does not depend on which others there are.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if name.endswith(("norm_q.weight", "norm_k.weight")):
        return 2 + 0.1 * noise
    if name.endswith("norm3.weight"):
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.02 * noise
    return noise / math.sqrt(shape[-1] if name.endswith("modulation") else math.prod(shape[1:]))


@dataclass(frozen=True)
class Layout:
    """Where a family's file lies and how it nests: {top: {prefix + name: tensor}}, or flat without a top."""

    file: str
    top: str | None = None
    prefix: str = "model."
    metadata: Mapping[str, str] | None = None


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "self-forcing": (
        Layout("self_forcing_dmd.pt", "generator_ema"),
        Layout("self_forcing_sid.pt", "generator_ema", "model._fsdp_wrapped_module."),
    ),
    "causal-forcing-chunkwise": (Layout("chunkwise/causal_forcing.pt", "generator"),),
    "causal-forcing-framewise": (Layout("framewise/causal_forcing.pt", "generator_ema"),),
    "causal-forcing-2step": (Layout("framewise-2step.pt", "generator_ema"),),
    "causal-forcing-1step": (Layout("framewise-1step.pt", "generator_ema"),),
    "causal-forcing-long": (Layout("chunkwise/longvideo.pt", "generator_ema"),),
    "rolling-forcing": (Layout("rolling_forcing_dmd.pt", "generator_ema"),),
    "longlive": (Layout("longlive_base.pt", "generator"),),
    "memflow": (Layout("base.pt", "generator"),),
    "reward-forcing": (Layout("rewardforcing.pt"),),
    "krea-realtime": (
        Layout("krea-realtime-video-14b.safetensors", prefix=""),
        Layout("krea/krea-realtime-video-14b.safetensors"),
    ),
    "causvid": (Layout("causvid/model.pt", "model", ""), Layout("CausVid/model.pt", "generator")),
    "minwm": (
        Layout("Wan21/Action2V/dmd/model.pt", "generator"),
        Layout("minWM/model.pt", "generator_ema", "model._fsdp_wrapped_module."),
        Layout("renamed.pt", "generator"),
    ),
    "raven": (Layout("raven_model.pt", prefix=""), Layout("cmgrpo_raven_merge.pt", prefix="")),
    "one-forcing": (Layout("one_forcing.pt", "generator_ema"), Layout("self-forcing/one_forcing.pt", "generator")),
    "wave-forcing": (Layout("WaveForcing/model.safetensors", prefix=""),),
    "streamdiffusion-v2": (Layout("wan_causal_dmd_v2v/model.pt", "generator"),),
    "livewan": (Layout("step002250_noema.pt", prefix=""), Layout("LiveWan/step002250_noema.pt", "generator")),
    "comfyui-causal": (Layout("causal_forcing-framewise.safetensors", prefix="", metadata=CAUSAL_METADATA),),
    "packforcing-partial": (Layout("partial/model.pt", "generator_ema"),),
}


def write_layout(folder: Path, layout: Layout, state_dict: Mapping[str, Tensor]) -> Path:
    """Writes `state_dict` (official names) as `layout` has it and returns the path."""
    named = {layout.prefix + name: tensor for name, tensor in state_dict.items()}
    return _write(folder / layout.file, {layout.top: named} if layout.top else named, layout.metadata)


def write_family(folder: Path, name: str, state_dict: Mapping[str, Tensor] | None = None) -> list[Path]:
    """The files of one family, random of size SMALL by default; the partial PackForcing brings its extra keys."""
    state_dict = dict(wan_state_dict() if state_dict is None else state_dict)
    if name == "packforcing-partial":
        state_dict |= partial_compressor()
    if name == "minwm":
        state_dict |= camera_path()
    return [write_layout(folder, layout, state_dict) for layout in LAYOUTS[name]]


def camera_path(config: WanConfig = SMALL) -> dict[str, Tensor]:
    """The extra keys of minWM: a projection per layer, which starts at zero."""
    names = [f"blocks.{layer}.self_attn.prope_o" for layer in range(config.num_layers)]
    weights = {f"{name}.weight": torch.zeros(config.dim, config.dim) for name in names}
    return weights | {f"{name}.bias": torch.zeros(config.dim) for name in names}


def in_diffusers_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` (official names) as diffusers' WanTransformer3DModel names it, written out name by name."""
    fixed = {
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "head.head": "proj_out",
    }
    inner = {"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
    for attention, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        inner |= {f"{attention}.{x}": f"{theirs}.to_{x}" for x in "qkv"} | {f"{attention}.o": f"{theirs}.to_out.0"}
        inner |= {f"{attention}.norm_{x}": f"{theirs}.norm_{x}" for x in "qk"}
    named = {}
    for name, tensor in state_dict.items():
        layer, _, kind = name.rpartition(".")
        if name == "head.modulation":
            named["scale_shift_table"] = tensor
        elif name.endswith(".modulation"):
            named[f"{layer}.scale_shift_table"] = tensor
        elif name.startswith("blocks."):
            blocks, number, rest = layer.split(".", 2)
            named[f"{blocks}.{number}.{inner[rest]}.{kind}"] = tensor
        else:
            named[f"{fixed.get(layer, layer)}.{kind}"] = tensor
    return named


def partial_compressor(channels: tuple[int, ...] = (16, 8, 8, 8, 128), seed: int = 3) -> dict[str, Tensor]:
    """The extra keys of the independent partial PackForcing: Conv3d at 0, 2, 4, 6 of a sequence."""
    tensors = {}
    for place, (inputs, outputs) in enumerate(pairwise(channels)):
        front = f"pack_compressor.net.{2 * place}"
        tensors[f"{front}.weight"] = _weight(f"{front}.weight", (outputs, inputs, 3, 3, 3), seed)
        tensors[f"{front}.bias"] = torch.zeros(outputs)
    return tensors


def write_training_save(path: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """A training save: several top keys, whose names run through FSDP's wrappers, and a step count."""
    wrapped = {top: {_fsdp_name(name): tensor for name, tensor in part.items()} for top, part in parts.items()}
    return _write(path, {**wrapped, "step": 600})


def _fsdp_name(name: str) -> str:
    """`blocks.0.self_attn.q.weight` as FSDP, torch.compile and activation checkpointing together would spell it."""
    if not name.startswith("blocks."):
        return f"model._fsdp_wrapped_module.{name}"
    blocks, layer, rest = name.split(".", 2)
    return (
        f"model._fsdp_wrapped_module.{blocks}.{layer}._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.{rest}"
    )


def write_stock_wan(path: Path, config: WanConfig = SMALL_STOCK, seed: int = 0, *, causal: bool = True) -> Path:
    """A safetensors file that ComfyUI's stock Load Diffusion Model reads: bare names, `causal` in its metadata."""
    return _write(path, wan_state_dict(config, seed), CAUSAL_METADATA if causal else None)


def scaled_fp8_state_dict(config: WanConfig = SMALL_STOCK, seed: int = 0) -> dict[str, Tensor]:
    """`wan_state_dict` with the layers' Linear weights as fp8 and, beside each, the `scale_weight` to multiply by.

    The mark `scaled_fp8` has two elements, which asks ComfyUI to multiply in full precision.
    """
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in wan_state_dict(config, seed).items():
        tensors[name] = weight
        if name.startswith("blocks.") and name.endswith(".weight") and weight.dim() == 2:
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name.removesuffix('.weight')}.scale_weight"] = scale
    return tensors


def write_scaled_fp8_wan(path: Path, config: WanConfig = SMALL_STOCK, seed: int = 0, *, causal: bool = True) -> Path:
    """A safetensors file of scaled fp8 that ComfyUI's stock Load Diffusion Model reads: `write_stock_wan`, rounded."""
    return _write(path, scaled_fp8_state_dict(config, seed), CAUSAL_METADATA if causal else None)


def lora_tensors(config: WanConfig = SMALL, rank: int = 4, seed: int = 5, scale: float = 1.0) -> dict[str, Tensor]:
    """ "<layer>.lora_A.weight" and "lora_B" for every Linear of the layers, large enough to be seen in the output."""
    tensors = {}
    for name, shape in expected_shapes(config).items():
        if name.startswith("blocks.") and name.endswith("weight") and len(shape) == 2:
            layer = name.removesuffix(".weight")
            tensors[f"{layer}.lora_A.weight"] = _weight(f"{layer}.lora_A", (rank, shape[1]), seed)
            tensors[f"{layer}.lora_B.weight"] = scale * _weight(f"{layer}.lora_B", (shape[0], rank), seed)
    return tensors


def write_comfyui_lora(path: Path, config: WanConfig = SMALL_STOCK, rank: int = 4, seed: int = 5) -> Path:
    """A LoRA as the stock LoraLoaderModelOnly reads it for Wan."""
    return _write(
        path, {f"diffusion_model.{name}": tensor for name, tensor in lora_tensors(config, rank, seed).items()}
    )


def write_peft_lora(path: Path, config: WanConfig = SMALL, rank: int = 4, seed: int = 5, *, bare: bool = False) -> Path:
    """LongLive's and MemFlow's `lora.pt`: PEFT names, under `generator_lora` beside its critic's, or bare."""
    lora = {
        f"base_model.model.{name.replace('.weight', '.default.weight') if bare else name}": tensor
        for name, tensor in lora_tensors(config, rank, seed).items()
    }
    critic = {name: torch.zeros_like(tensor) for name, tensor in lora.items()}
    return _write(path, lora if bare else {"generator_lora": lora, "critic_lora": critic, "step": 1})


def write_context(path: Path, text_dim: int = 4096, tokens: int = 12, seed: int = 9) -> Path:
    """A saved context, as long as a short prompt's, of the size that umT5's embeddings have."""
    generator = torch.Generator().manual_seed(seed)
    return _write(path, {"context": 0.2 * torch.randn(1, tokens, text_dim, generator=generator)})


class MakesAFolder:
    """Pickled, it would create the folder `path` while being loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def write_malicious(path: Path, marker: Path, *, old_format: bool = False) -> Path:
    """A torch file that creates the folder `marker` where it is loaded without care."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"generator_ema": {"model.head.modulation": torch.zeros(1, 2, 128)}, "extra": MakesAFolder(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    return path


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cuts a file's end off."""
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    return path


def write_umt5(folder: Path, text_dim: int = 64, seed: int = 2, *, subfolders: bool = False) -> Path:
    """A random umT5 with a word tokenizer, as `transformers` saves them; `subfolders` as diffusers lays them out."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=64, d_model=text_dim, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    torch.manual_seed(seed)
    encoder = UMT5EncoderModel(config)
    encoder.save_pretrained(folder / "text_encoder" if subfolders else folder)
    _umt5_tokenizer().save_pretrained(folder / "tokenizer" if subfolders else folder)
    return folder


def _umt5_tokenizer():
    """Unigram over a handful of words and the letters, with umT5's special tokens: 0 pads, 1 ends, 2 is unknown."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["\u2581a", "\u2581red", "\u2581blue", "\u2581circle", "\u2581square", "\u2581moves", "\u2581", "&", ","]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(word, -2.0) for word in words] + [(letter, -6.0) for letter in letters]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _write(path: Path, content: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(content), path, metadata=dict(metadata) if metadata else None)
    else:
        torch.save(dict(content), path)
    return path
