"""Names in checkpoint files: removing top-level keys and prefixes, and comparing the rest with the expected names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import PackForcingError
from ..model.config import WanConfig

# Wrappers of training frameworks; they have no meaning, at any depth.
WRAPPERS = frozenset({"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"})

# Possible prefixes of an official name: top-level keys of training checkpoints, and prefixes of other tools.
TOP_KEYS = ("generator_ema", "generator", "generator_lora", "model", "state_dict")
CRITICS = ("critic", "critic_lora")
FRONTS = frozenset({*TOP_KEYS, *CRITICS, "diffusion_model", "net", "module", "base_model", "transformer", "unet"})

COMPRESSOR_FRONTS = ("pack_compressor.", "compressor.")

# Parts of a file that text-to-video does not use, and what they are.
UNUSED_PARTS = {".self_attn.prope_o.": "minWM's camera path (prope_o), which does nothing without a camera"}

# diffusers' name of a part -> the official one, at the beginning of a name and inside a layer.
_DIFFUSERS_SIGN = "condition_embedder.time_embedder.linear_1.weight"
_DIFFUSERS = {
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.image_embedder.": "img_emb.",
    "proj_out.": "head.head.",
}
_DIFFUSERS_LAYER = {
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "o.",
    "norm2.": "norm3.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
}

_LORA = re.compile(r"(^|\.)(lora_[AB]|lora_down|lora_up|lora\.(down|up)|lora_embedding_[AB]|to_\w+_lora)(\.|$)")

# Scales and markers of quantised files, stored beside the weights.
_QUANTISED = re.compile(
    r"(^|\.)(scaled_fp8|scale_weight|scale_input|weight_scale(_2)?|input_scale|pre_quant_scale|comfy_quant)$"
)


@dataclass(frozen=True)
class KeyReport:
    """How the names and shapes of a state dict differ from those expected for these sizes."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()  # name, got, expected

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape)

    def describe(self, most: int = 5) -> str:
        """One phrase per kind of difference, with the first few names."""
        shapes = [f"{name} is {list(got)}, expected {list(want)}" for name, got, want in self.wrong_shape]
        groups = (("missing", self.missing), ("unexpected", self.unexpected), ("of the wrong shape", shapes))
        return "; ".join(f"{len(names)} {what}: {_some(names, most)}" for what, names in groups if names)


def split_name(name: str) -> tuple[str, str]:
    """(prefix, official name): removes wrappers at every depth, then everything before the official name.

    "generator_ema.model._fsdp_wrapped_module.blocks.0.modulation" -> ("generator_ema.model", "blocks.0.modulation").
    """
    segments = [segment for segment in name.split(".") if segment not in WRAPPERS]
    taken = 0
    while taken < len(segments) - 1 and segments[taken] in FRONTS:
        taken += 1
    return ".".join(segments[:taken]), ".".join(segments[taken:])


def group_names(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """prefix -> {official name: name in the file}. Raises PackForcingError if two names become the same."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        front, official = split_name(name)
        group = groups.setdefault(front, {})
        if official in group:
            raise PackForcingError(
                f"The file has {official} twice, as {group[official]} and as {name}: it is not one state dict."
            )
        group[official] = name
    return {front: _in_official_names(group) for front, group in groups.items()}


def _in_official_names(group: dict[str, str]) -> dict[str, str]:
    """Converts a part with diffusers' names to official names; leaves any other unchanged."""
    if _DIFFUSERS_SIGN not in group:
        return group
    renamed = {from_diffusers(name): there for name, there in group.items()}
    if len(renamed) < len(group):
        raise PackForcingError("The file has tensors under diffusers' names and under Wan's own: it is not one model.")
    return renamed


def from_diffusers(name: str) -> str:
    """The official name for diffusers' `name`; an unknown name is returned unchanged."""
    if name == "scale_shift_table":
        return "head.modulation"
    if not name.startswith("blocks."):
        front = next((front for front in _DIFFUSERS if name.startswith(front)), "")
        return _DIFFUSERS.get(front, "") + name.removeprefix(front)
    blocks, layer, inner = (*name.split(".", 2), "", "")[:3]
    if not inner:
        return name
    if inner == "scale_shift_table":
        return f"{blocks}.{layer}.modulation"
    for theirs, official in _DIFFUSERS_LAYER.items():
        head, found, tail = inner.partition(theirs)
        if found and (not head or head.endswith(".")):
            inner = head + official + tail
    return f"{blocks}.{layer}.{inner}"


def is_transformer(names: Iterable[str]) -> bool:
    """Whether official names look like a Wan transformer, whole or damaged."""
    names = frozenset(names)
    signs = ("patch_embedding.weight", "head.modulation", "head.head.weight", "blocks.0.self_attn.q.weight")
    return sum(sign in names for sign in signs) >= 2


def is_lora_name(name: str) -> bool:
    """Whether a name belongs to a LoRA."""
    return bool(_LORA.search(name)) or name.startswith(("lora_unet_", "lora_transformer_", "lycoris_"))


def is_quantisation_name(name: str) -> bool:
    """Whether a name is a scale or marker of a quantised file, not a weight."""
    return bool(_QUANTISED.search(name))


def choose_group(
    groups: Mapping[str, Mapping[str, str]], key: str | None, preferred: tuple[str, ...] = ()
) -> str | None:
    """The prefix of the transformer to use, or None if there is none.

    `key` is the user's choice ("generator", or a whole prefix). Otherwise `preferred`, then the averaged generator,
    come first and critics last. Raises PackForcingError if the file has no `key`.
    """
    return choose_front([front for front, names in groups.items() if is_transformer(names)], key, preferred)


def is_critic(front: str) -> bool:
    """Whether a prefix belongs to a critic, which is a part of the training, not of the model."""
    return any(segment in CRITICS for segment in front.split("."))


def choose_front(fronts: list[str], key: str | None, preferred: tuple[str, ...] = ()) -> str | None:
    """Which of `fronts` to use, by the rules of `choose_group`."""
    if key is not None:
        chosen = [front for front in fronts if front == key or key in front.split(".")]
        if not chosen:
            there = ", ".join(front or "(none)" for front in fronts) or "none that fits"
            raise PackForcingError(f"Got top-level key {key!r}; the file has {there}.")
        return min(chosen, key=lambda front: (front != key, len(front)))
    order = (*preferred, *TOP_KEYS)
    return min(fronts, key=lambda front: _rank(front, order), default=None)


def set_compressor_aside(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(transformer's names, compressor's names), each in the order given."""
    names = list(names)
    return (
        [name for name in names if not name.startswith(COMPRESSOR_FRONTS)],
        [name for name in names if name.startswith(COMPRESSOR_FRONTS)],
    )


def set_unused_aside(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """(names that are used, unused parts -> their number of tensors)."""
    used: list[str] = []
    unused: Counter[str] = Counter()
    for name in names:
        what = next((what for part, what in UNUSED_PARTS.items() if part in name), None)
        if what:
            unused[what] += 1
        else:
            used.append(name)
    return used, dict(unused)


def expected_shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Wan2.1 T2V transformer by its official name, with its shape."""
    dim, ffn = config.dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, config.in_dim, *config.patch_size),
        "patch_embedding.bias": (dim,),
        **_linear("text_embedding.0", config.text_dim, dim),
        **_linear("text_embedding.2", dim, dim),
        **_linear("time_embedding.0", config.freq_dim, dim),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", dim, 6 * dim),
    }
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                shapes |= _linear(f"{block}.{attention}.{projection}", dim, dim)
            shapes[f"{block}.{attention}.norm_q.weight"] = (dim,)
            shapes[f"{block}.{attention}.norm_k.weight"] = (dim,)
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        shapes |= _linear(f"{block}.ffn.0", dim, ffn) | _linear(f"{block}.ffn.2", ffn, dim)
    patch_elements = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    return shapes | {"head.modulation": (1, 2, dim)} | _linear("head.head", dim, config.out_dim * patch_elements)


def check_keys(shapes: Mapping[str, tuple[int, ...]], config: WanConfig) -> KeyReport:
    """Compares names and shapes exactly with `expected_shapes(config)`."""
    expected = expected_shapes(config)
    return KeyReport(
        missing=tuple(name for name in expected if name not in shapes),
        unexpected=tuple(name for name in shapes if name not in expected),
        wrong_shape=tuple(
            (name, shapes[name], want) for name, want in expected.items() if name in shapes and shapes[name] != want
        ),
    )


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _rank(front: str, order: tuple[str, ...]) -> int:
    if is_critic(front):
        return len(order) + 1
    segments = front.split(".")
    return next((place for place, top in enumerate(order) if top in segments), len(order))


def _some(names: Iterable[str], most: int) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
