"""LoRA files with key names that ComfyUI does not know: ComfyUI would silently ignore them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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

Prompt = dict[str, dict]


def honoured(model, hidden) -> tuple:
    """Returns (the MODEL with every LoRA applied, notes on what was renamed).

    Raises PackForcingError for LoRAs and other attachments that would have no effect on the video.
    """
    require_understood(model)
    return with_unread_loras(model, hidden.prompt, hidden.unique_id)


def with_unread_loras(model, prompt: Prompt | None, sampler: str) -> tuple:
    """Returns (the MODEL with the LoRAs whose key names ComfyUI did not recognise applied too, notes).

    Raises PackForcingError that names a LoRA which matches no layer of the MODEL even after renaming.
    """
    config = host.wan_config(model)
    loras, notes = list(_loras(prompt or {}, sampler)), []
    keys = comfy.lora.model_lora_keys_unet(model.model, {}) if loras else {}
    for name, strength in loras:
        path = folder_paths.get_full_path("loras", name)
        if path is None:
            continue
        tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        read = comfy.lora.load_lora(tensors, keys, log_missing=False)
        renamed = {} if read else comfy.lora.load_lora(_renamed(tensors), keys, log_missing=False)
        example = next(iter(tensors), "nothing")
        if not read and not (renamed and isinstance(strength, int | float)):
            raise PackForcingError(
                f"No tensor of the LoRA {name} matches this model (example: {example!r}), so it would "
                f"change nothing. {lora_advice(config)}"
            )
        _require_shapes(path, config)
        unread = [own for own, native in _names(tensors, by_us=bool(renamed)).items() if not _reaches(native, keys)]
        if unread:
            notes.append(
                f"Note: {len(unread)} of {len(tensors)} tensors of the LoRA {name} match no layer of this model and "
                f"change nothing (example: {unread[0]!r})."
            )
        else:
            notes.append(f"The LoRA {name} fits: all {len(tensors)} tensors are used.")
        if renamed:
            model = model.clone()
            model.add_patches(renamed, strength)
            notes.append(
                f"Note: the LoRA {name} uses layer names that ComfyUI does not read ({example!r}); PackForcing renamed "
                "them and applied it."
            )
    return model, notes


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's tensors under the names that ComfyUI reads."""
    parts = (names for front, names in group_names(tensors).items() if not is_critic(front))
    named = ((native_name(name), there) for names in parts for name, there in names.items())
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


def _loras(prompt: Prompt, sampler: str) -> Iterator[tuple[str, object]]:
    """The LoRA files, and their nonzero strengths, of the nodes upstream of the sampler's MODEL input."""
    seen, waiting = set(), [prompt.get(sampler, {}).get("inputs", {}).get("model")]
    while waiting:
        link = waiting.pop()
        if not isinstance(link, list) or link[0] in seen:
            continue
        seen.add(link[0])
        inputs = prompt.get(link[0], {}).get("inputs", {})
        waiting.append(inputs.get("model"))
        name, strength = inputs.get("lora_name"), inputs.get("strength_model", 1.0)
        if isinstance(name, str) and strength != 0:
            yield name, strength
