"""The public Python API: models, settings, and a render as an iterator of events that ends with a finished file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .checkpoint.build import build_model
from .checkpoint.families import DEFAULT_FAMILY
from .checkpoint.load import read_checkpoint
from .checkpoint.merge import merged, open_lora, require_fit
from .compressor.weights import load_compressor
from .devices import usable_device
from .errors import PackForcingError
from .miniature import load as shipped
from .recipe.plan import RenderPlan, plan_render
from .recipe.recipe import Recipe
from .recipe.settings import Settings
from .render.recording import Replayed
from .render.render import Models, Place, Render, open_video, render
from .render.writing import Finished, Note, RenderEvent, WrittenBlock
from .sampler.denoising import BlockDone, StepDone
from .sampler.start import Start
from .text.umt5 import encode_prompts
from .vae.load import load_vae
from .video.format import VideoFormat

__all__ = [
    "BlockDone",
    "Finished",
    "Models",
    "Note",
    "PackForcingError",
    "Place",
    "Recipe",
    "Render",
    "RenderEvent",
    "RenderPlan",
    "Replayed",
    "Settings",
    "Start",
    "StepDone",
    "VideoFormat",
    "WrittenBlock",
    "load_miniature",
    "load_models",
    "open_video",
    "plan_render",
    "render",
]


def load_models(
    checkpoint: Path | str,
    vae: Path | str,
    text_encoder: Path | str | None = None,
    compressor: Path | str | None = None,
    *,
    loras: Mapping[Path | str, float] | None = None,
    device: torch.device | str | None = None,
    decode_device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Models:
    """Loads a Wan2.1 T2V checkpoint with its VAE and, if given, its text encoder's folder and trained compressor
    weights.

    `loras` maps LoRA files to strengths; they are merged into the weights. By default models run on a GPU in bfloat16,
    or on the CPU in float32 if there is none; the VAE on `decode_device` if given. Raises PackForcingError for files of
    another kind or that do not belong together, a LoRA that fits no layer, and a device that cannot be used. Without a
    text encoder, open the render with a script of embeddings.
    """
    place = usable_device(str(device or ("cuda" if torch.cuda.is_available() else "cpu")), "device")
    decodes = usable_device(str(decode_device), "decode_device") if decode_device else place
    kind = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    read = read_checkpoint(str(checkpoint))
    opened = [(open_lora(file), strength) for file, strength in (loras or {}).items()]
    for lora, _ in opened:
        require_fit(lora, read.config)
    model = build_model(replace(read, state_dict=merged(read.state_dict, opened, read.config)), place, kind)
    encode, high_res, span = None, None, None
    if text_encoder is not None:
        width = read.config.text_dim
        encode = partial(encode_prompts, folder=str(text_encoder), device=place, dtype=kind, text_dim=width)
    if compressor is not None:
        frames = (read.family or DEFAULT_FAMILY).frames_per_block
        base = read.unrounded()
        loaded = load_compressor(str(compressor), read.config, frames, device=place, dtype=kind, base=base)
        high_res, span = loaded.high_res, loaded.info.mid_span
    decoder = load_vae(str(vae), device=decodes, dtype=kind)
    return Models(model, decoder, encode, high_res, span, read.family)


def load_miniature(dtype: torch.dtype | None = None) -> Models:
    """The trained miniature that comes with the package, for 128x64 pixels, in the dtype that is fastest on
    this CPU.
    """
    kind = dtype or shipped.fast_dtype()
    words, trained = shipped.load_text(), shipped.load_compressor(dtype=kind)
    return Models(
        shipped.load_model(kind),
        shipped.load_vae(kind),
        lambda prompts: words(list(prompts)).split(1),
        trained.high_res if trained else None,
        trained.info.mid_span if trained else None,
        shipped.FAMILY,
    )
