"""LoRA files that fit nothing: ComfyUI passes by their patches in silence, and the video would be one without them."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths

from ..packforcing_core.checkpoint.merge import open_lora, require_fit
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.model.config import WanConfig
from . import host
from .held import require_understood

Prompt = dict[str, dict]


def require_honoured(model, hidden) -> None:
    """Raises PackForcingError for what hangs on the MODEL, or was meant to, and would not show in the video."""
    require_understood(model)
    require_fitting_loras(model, hidden.prompt, hidden.unique_id)


def require_fitting_loras(model, prompt: Prompt | None, sampler: str) -> None:
    """Raises PackForcingError naming a LoRA of the nodes before the sampler that changes nothing of the MODEL."""
    config = host.wan_config(model)
    names = list(dict.fromkeys(_lora_names(prompt or {}, sampler)))
    keys = comfy.lora.model_lora_keys_unet(model.model, {}) if names else {}
    for name in names:
        path = folder_paths.get_full_path("loras", name)
        if path is None:
            continue
        tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        if comfy.lora.load_lora(tensors, keys, log_missing=False):
            _require_shapes(path, config)
        else:
            example = next(iter(tensors), "nothing")
            raise PackForcingError(
                f"The LoRA {name} fits nothing of this model (it holds {example!r} and the like), so it would "
                "change nothing. Use a LoRA made for Wan2.1 T2V 1.3B, or remove the node."
            )


def _require_shapes(path: str, config: WanConfig) -> None:
    """PackForcingError for a LoRA whose names fit and whose shapes do not, as one made for 14B on 1.3B."""
    try:
        lora = open_lora(path)
    except PackForcingError:  # Of a kind that ComfyUI knows and the core does not.
        return
    if lora.layers and lora.width:
        require_fit(lora, config)


def _lora_names(prompt: Prompt, sampler: str) -> Iterator[str]:
    """Files that the nodes up the MODEL links of a prompt name as LoRAs, at a strength that is not 0."""
    seen, waiting = set(), [prompt.get(sampler, {}).get("inputs", {}).get("model")]
    while waiting:
        link = waiting.pop()
        if not isinstance(link, list) or link[0] in seen:
            continue
        seen.add(link[0])
        inputs = prompt.get(link[0], {}).get("inputs", {})
        waiting.append(inputs.get("model"))
        name = inputs.get("lora_name")
        if isinstance(name, str) and inputs.get("strength_model", 1.0) != 0:
            yield name
