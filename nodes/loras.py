"""LoRA files whose key names ComfyUI does not know: it would ignore them silently, and render without the LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
from torch import Tensor

from ..packforcing_core.checkpoint.keys import group_names, is_critic
from ..packforcing_core.checkpoint.lora_names import native_name
from ..packforcing_core.checkpoint.merge import open_lora, require_fit
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.model.config import WanConfig
from . import host
from .held import require_understood

Prompt = dict[str, dict]


def honoured(model, hidden) -> tuple:
    """(the MODEL with all that was meant to hang on it, notes on what had to be done for that).

    Raises PackForcingError for what hangs on it, or was meant to, and would not show in the video.
    """
    require_understood(model)
    return with_unread_loras(model, hidden.prompt, hidden.unique_id)


def with_unread_loras(model, prompt: Prompt | None, sampler: str) -> tuple:
    """(the MODEL with those LoRAs of the nodes before the sampler that ComfyUI did not read for their names, notes).

    Raises PackForcingError naming a LoRA that changes nothing of the MODEL under other names either.
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
                f"The LoRA {name} fits nothing of this model (it holds {example!r} and the like), so it would "
                "change nothing. Use a LoRA made for Wan2.1 T2V 1.3B, or remove the node."
            )
        _require_shapes(path, config)
        unread = [own for own, native in _names(tensors, by_us=bool(renamed)).items() if not _reaches(native, keys)]
        if unread:
            notes.append(
                f"Note: {len(unread)} of {len(tensors)} tensors of the LoRA {name} belong to nothing of this model and "
                f"change nothing ({unread[0]!r} and the like)."
            )
        if renamed:
            model = model.clone()
            model.add_patches(renamed, strength)
            notes.append(f"Note: the LoRA {name} names its layers as {example!r}; ComfyUI does not read it, we do.")
    return model, notes


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's tensors under the names that ComfyUI reads."""
    parts = (names for front, names in group_names(tensors).items() if not is_critic(front))
    named = ((native_name(name), there) for names in parts for name, there in names.items())
    return {native: tensors[there] for native, there in named if native is not None}


def _names(tensors: Mapping[str, Tensor], by_us: bool) -> dict[str, str | None]:
    """The name under which each tensor of a LoRA is read, by its own: None for those that we cannot name."""
    if not by_us:
        return {name: name for name in tensors}
    found = {there: native_name(name) for names in group_names(tensors).values() for name, there in names.items()}
    return {name: found.get(name) for name in tensors}


def _reaches(name: str | None, keys: Mapping[str, object]) -> bool:
    """Whether ComfyUI finds the layer of a LoRA's tensor: its name begins with that of one of the `keys`."""
    parts = (name or "").split(".")
    return any(".".join(parts[:count]) in keys for count in range(len(parts), 0, -1))


def _require_shapes(path: str, config: WanConfig) -> None:
    """PackForcingError for a LoRA whose names fit and whose shapes do not, as one made for 14B on 1.3B."""
    try:
        lora = open_lora(path)
    except PackForcingError:  # Of a kind that ComfyUI knows and the core does not.
        return
    if lora.layers and lora.width:
        require_fit(lora, config)


def _loras(prompt: Prompt, sampler: str) -> Iterator[tuple[str, object]]:
    """Files that the nodes up the MODEL links of a prompt name as LoRAs, and their strengths, which are not 0."""
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
