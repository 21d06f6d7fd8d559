"""LoRA files with key names that ComfyUI does not know: ComfyUI would silently ignore them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
from torch import Tensor

from ..packforcing_core.checkpoint.keys import group_names, is_critic
from ..packforcing_core.checkpoint.lora_names import lora_advice, native_name
from ..packforcing_core.checkpoint.merge import open_lora, require_fit
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.model.config import WanConfig
from . import host
from .held import require_understood
from .upstream import Upstream, upstream

_LORA_NODES = {"LoraLoader", "LoraLoaderModelOnly"}
_ADD_NOTHING = {*_LORA_NODES, "ModelSamplingSD3", "ModelComputeDtype"}
"""Nodes that add nothing to a MODEL that could be refused."""


@dataclass(frozen=True)
class Named:
    """A LoRA file that a node names. `strength` may be a link to another node."""

    file: str
    strength: object
    node: Upstream

    @property
    def is_applied(self) -> bool:
        """Whether ComfyUI's own LoRA node applied it, and nothing chose or merged after it."""
        return self.node.direct and self.node.kind in _LORA_NODES


def honoured(model, hidden) -> tuple:
    """Returns (the MODEL with every LoRA applied, notes on what was renamed).

    Raises PackForcingError for LoRAs and other attachments that would have no effect on the video.
    """
    nodes = list(upstream(hidden.prompt or {}, hidden.unique_id))
    require_understood(model, [node.title for node in nodes if node.passes and node.kind not in _ADD_NOTHING])
    notes = [
        f"Note: another node chooses the LoRA of {node.title}, so PackForcing cannot check that it fits."
        for node in nodes
        if node.kind in _LORA_NODES and not isinstance(node.inputs.get("lora_name"), str)
    ]
    loras = [lora for node in nodes for lora in _named(node)]
    keys = comfy.lora.model_lora_keys_unet(model.model, {}) if loras else {}
    for lora in loras:
        try:
            model, found = _with_lora(model, lora, keys)
        except Exception as error:
            if lora.is_applied:
                raise
            named = isinstance(error, PackForcingError)
            found = [f"Warning: {error}" if named else f"Warning: the LoRA {lora.file}: {error}"]
        notes += found
    return model, notes


def _named(node: Upstream) -> Iterator[Named]:
    """The LoRA files that a node names with a strength other than 0: in ComfyUI's way, or in a dictionary each, as in
    rgthree's Power Lora Loader.
    """
    files = {file.replace("\\", "/"): file for file in folder_paths.get_filename_list("loras")}
    for given in node.inputs.values():
        own = given if isinstance(given, dict) else {}
        name = own.get("lora", given)
        file = files.get(name.replace("\\", "/")) if isinstance(name, str) else None
        strength = own.get("strength", node.inputs.get("strength_model", 1.0))
        if file and strength != 0 and own.get("on", True):
            yield Named(file, strength, node)


def _with_lora(model, lora: Named, keys: Mapping[str, object]) -> tuple:
    """Returns (the MODEL, with the LoRA if ComfyUI did not recognise its names; notes). `keys`: names that ComfyUI
    reads.

    Raises PackForcingError for a LoRA that matches no layer of the MODEL even after renaming.
    """
    config = host.wan_config(model)
    path = folder_paths.get_full_path_or_raise("loras", lora.file)
    tensors = comfy.lora_convert.convert_lora(_tensors(path))
    read = comfy.lora.load_lora(tensors, keys, log_missing=False)
    renamed = {} if read else comfy.lora.load_lora(_renamed(tensors), keys, log_missing=False)
    example = next(iter(tensors), "nothing")
    if not read and not renamed:
        raise PackForcingError(
            f"No tensor of the LoRA {lora.file} matches this model (example: {example!r}), so it would "
            f"change nothing. {lora_advice(config)}"
        )
    _require_shapes(path, config)
    if renamed and not (lora.is_applied and isinstance(lora.strength, int | float)):
        return model, [
            f"Warning: ComfyUI does not read the layer names of the LoRA {lora.file} ({example!r}), so in "
            f"{lora.node.title} it probably changes nothing. Use a Load LoRA node directly before the sampler."
        ]
    fits = _fits(lora.file, tensors, keys, by_us=bool(renamed))
    notes = [fits] if lora.node.direct or fits.startswith("Note: ") else []  # Else it may not be in use at all.
    if renamed:
        model = model.clone()
        model.add_patches(renamed, lora.strength)
        notes.append(
            f"Note: the LoRA {lora.file} uses layer names that ComfyUI does not read ({example!r}); PackForcing "
            "renamed them and applied it."
        )
    return model, notes


def _fits(file: str, tensors: Mapping[str, Tensor], keys: Mapping[str, object], *, by_us: bool) -> str:
    unread = [own for own, native in _names(tensors, by_us=by_us).items() if not _reaches(native, keys)]
    if not unread:
        return f"The LoRA {file} fits: all {len(tensors)} tensors match layers of this model."
    return (
        f"Note: {len(unread)} of {len(tensors)} tensors of the LoRA {file} match no layer of this model and "
        f"change nothing (example: {unread[0]!r})."
    )


def _tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file, without those of a critic beside them (as in LongLive's `lora.pt`)."""
    flat = dict(_flat(comfy.utils.load_torch_file(path, safe_load=True)))
    critics = (names for front, names in group_names(flat).items() if is_critic(front))
    unused = {there for names in critics for there in names.values()}
    return {name: tensor for name, tensor in flat.items() if name not in unused}


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, Tensor):
            yield f"{before}{name}", value


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's tensors under the names that ComfyUI reads."""
    named = ((native_name(name), there) for names in group_names(tensors).values() for name, there in names.items())
    return {native: tensors[there] for native, there in named if native is not None}


def _names(tensors: Mapping[str, Tensor], by_us: bool) -> dict[str, str | None]:
    """Maps each tensor name of a LoRA to the name under which it is read; None if neither we nor ComfyUI can map it."""
    if not by_us:
        return {name: name for name in tensors}
    found = {there: native_name(name) for names in group_names(tensors).values() for name, there in names.items()}
    return {name: found.get(name) for name in tensors}


def _reaches(name: str | None, keys: Mapping[str, object]) -> bool:
    """Whether ComfyUI finds the layer for a LoRA tensor: its name begins with one of the `keys`."""
    parts = (name or "").split(".")
    return any(".".join(parts[:count]) in keys for count in range(len(parts), 0, -1))


def _require_shapes(path: str, config: WanConfig) -> None:
    """Raises PackForcingError for a LoRA whose names match but whose shapes do not, such as a 14B LoRA on a 1.3B."""
    try:
        lora = open_lora(path)
    except PackForcingError:  # A kind of LoRA that ComfyUI knows and the core does not.
        return
    if lora.layers and lora.width:
        require_fit(lora, config)
