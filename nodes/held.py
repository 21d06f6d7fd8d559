"""What a MODEL actually holds: the weights of quantised layers, and what other nodes attached to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..packforcing_core.errors import PackForcingError

# The attachments that block-by-block sampling supports. Anything else is refused by name: an error is better than an
# attachment that is silently ignored.
_UNDERSTOOD_OPTIONS = {"transformer_options", "disable_cfg1_optimization"}
_UNDERSTOOD_TRANSFORMER_OPTIONS = {"optimized_attention_override", "attention_backend", "preferred_attention"}
_CROSS_ATTENTION = re.compile(r"diffusion_model\.blocks\.\d+\.cross_attn\.forward")
_UNDERSTOOD_PARTS = {"model_sampling", "manual_cast_dtype"}

_NAMES = {
    "model_function_wrapper": "a wrapper of the whole model",
    "context_handler": "context windows",
    "sampler_cfg_function": "a guidance function",
    "sampler_pre_cfg_function": "a guidance function",
    "sampler_post_cfg_function": "a guidance function",
    "patches": "patches of the transformer",
    "patches_replace": "replacements of transformer layers",
    "rope_options": "changed rotary positions",
    "diffusion_model": "a compiled model (TorchCompileModel)",
    "diffusion_model.rope_embedder": "changed rotary positions (RifleXRoPE)",
    "bypass_lora": "a LoRA that is not merged into the weights (use Load LoRA, without Bypass)",
}
_NAMES_BY_ENDING = {
    ".self_attn.forward": "a replaced self-attention (Enhance-A-Video and the like)",
    ".ffn.forward": "replaced feed-forward layers",
    ".forward": "replaced layers",
}


def require_understood(model, added_by: Sequence[str]) -> None:
    """Raises PackForcingError that names any attachment to the MODEL that sampling would ignore.

    `added_by`: titles of the nodes that may have added it.
    """
    found = [_option_name(key, value) for key, value in _not_understood(model)]
    found += [_patch_name(key) for key in model.object_patches if not _is_understood(key)]
    if _holds_something(model.wrappers):
        found.append(_wrappers(model.wrappers))
    if _holds_something(getattr(model, "weight_wrapper_patches", None)):
        found.append("wrappers around weights")
    if model.hook_patches or getattr(model, "forced_hooks", None):
        found.append("weight hooks")
    injections = getattr(model, "injections", None) or {}
    found += [_NAMES.get(key, f"injected parts ({key})") for key, parts in injections.items() if parts]
    if found:
        which = f": {added_by[0]}" if len(added_by) == 1 else f", one of {', '.join(added_by)}" if added_by else ""
        raise PackForcingError(
            f"The MODEL carries {' and '.join(sorted(set(found)))}, which block-by-block sampling does not support. "
            f"Remove the node that adds it{which}. LoRA, fp8, GGUF, KJNodes' NAG and attention nodes are fine."
        )


def _not_understood(model) -> Iterator[tuple[str, Any]]:
    options = model.model_options
    inner = options.get("transformer_options", {})
    for given, understood in ((options, _UNDERSTOOD_OPTIONS), (inner, _UNDERSTOOD_TRANSFORMER_OPTIONS)):
        yield from ((k, v) for k, v in given.items() if k not in understood and _holds_something(v))


def _is_understood(part: str) -> bool:
    return part in _UNDERSTOOD_PARTS or _CROSS_ATTENTION.fullmatch(part) is not None


def _option_name(key: str, value) -> str:
    return _wrappers(value) if key == "wrappers" else _NAMES.get(key, f"the option {key}")


def _wrappers(wrappers) -> str:
    return f"wrappers around the model ({', '.join(sorted(set(_wrapper_names(wrappers))))})"


def _wrapper_names(wrappers, path: tuple = ()) -> Iterator[str]:
    """The names under which nodes added wrappers; without a name, those of the functions."""
    if isinstance(wrappers, dict):
        for key, inner in wrappers.items():
            yield from _wrapper_names(inner, (*path, key))
    elif isinstance(wrappers, list | tuple):
        for inner in wrappers:
            yield from _wrapper_names(inner, path)
    elif wrappers is not None:
        named = len(path) > 1 and path[-1] is not None  # By kind, then by name.
        yield str(path[-1]) if named else getattr(wrappers, "__qualname__", type(wrappers).__qualname__)


def _patch_name(key: str) -> str:
    named = (name for ending, name in _NAMES_BY_ENDING.items() if key.endswith(ending))
    return _NAMES.get(key) or next(named, f"a replaced {key}")


def _holds_something(value) -> bool:
    """Whether nested dictionaries and lists of patches hold anything at the bottom."""
    if isinstance(value, dict):
        return any(_holds_something(v) for v in value.values())
    return bool(value) if isinstance(value, list | tuple | str | int | float) else value is not None


def replaced_parts(model) -> dict[str, Any]:
    """The replaced parts that sampling supports, by key."""
    return {key: patch for key, patch in model.object_patches.items() if _CROSS_ATTENTION.fullmatch(key)}


def attention_options(model) -> dict[str, Any]:
    """What other nodes set for the MODEL's attention, by key."""
    options = model.model_options.get("transformer_options", {})
    return {key: options[key] for key in sorted(_UNDERSTOOD_TRANSFORMER_OPTIONS) if _holds_something(options.get(key))}


def held_weights(module: nn.Module, backup: dict[str, Any]) -> dict[str, Any]:
    """All tensors that the layers compute with, by name, on any device. Weights in `backup` are taken as they were
    before patching.

    For quantised layers the state dict may hold meta tensors (ComfyUI-GGUF), scales beside the weights, or several
    tensors in one (torchao, ComfyUI's own): the tensors that are really held are returned.
    """
    held = {name: weight for name, weight in module.state_dict().items() if not weight.is_meta}
    for prefix, layer in module.named_modules():
        inside = {**layer._parameters, **layer._buffers}
        own = {n: t for n, t in vars(layer).items() if inside.get("weight") is not None and not n.startswith("_")}
        for name, tensor in {**inside, **own}.items():
            if isinstance(tensor, Tensor):
                held.setdefault(f"{prefix}.{name}" if prefix else name, tensor)
    return {name: _plain(backup[name].weight if name in backup else tensor) for name, tensor in held.items()}


def chosen_dtypes(module: nn.Module) -> list[str]:
    """What the classes of layers are set to compute in, where they leave that open: ComfyUI-GGUF's `dequant_dtype`.

    Weights that are dequantised in another type differ: in float16 by some ten-thousandths of their size.
    """
    kinds = {kind for layer in module.modules() for kind in type(layer).__mro__}
    settings = (setting for kind in kinds for setting in vars(kind).items() if setting[0].endswith("_dtype"))
    return sorted({f"{name}={value}" for name, value in settings if isinstance(value, str | torch.dtype)})


def _plain(tensor: Tensor) -> Any:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {name: _plain(getattr(tensor, name)) for name in names}
    return tensor.detach().as_subclass(torch.Tensor)
