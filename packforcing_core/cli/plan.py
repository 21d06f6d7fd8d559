"""Show what a render will need before anything runs: frames, blocks, tokens, bytes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..checkpoint.families import DEFAULT_FAMILY
from ..checkpoint.load import inspect as inspect_file
from ..devices import DTYPES
from ..errors import PackForcingError
from ..geometry import GB, size_text
from ..model.config import WAN_SIZES, WanConfig
from ..recipe.plan import RenderPlan, plan_render
from ..vae.config import VAEConfig
from ..vae.decode_bytes import frames_at_once, vae_bytes
from . import options as shared

ROWS = {
    "current_blocks": "blocks denoised together",
    "window_frames": "positions in view",
    "cache_bytes": "past frames in the KV cache",
    "buffer_bytes": "whole KV cache, in VRAM",
    "bank_bytes": "bank of compressed blocks",
    "host_bytes": "part of the bank in system RAM",
    "weights_bytes": "weights",
    "peak_bytes": "peak VRAM, about",
    "block_disk_bytes": "on disk, each block at most",
    "disk_bytes": "on disk, without the video",
}
"""What the table calls a field of the plan, where the field's name does not say what it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="1.3B", help=f"{', '.join(WAN_SIZES)}, or a checkpoint file")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of weights, keys and values")
    parser.add_argument(
        "--vram",
        type=float,
        default=16.0,
        metavar="GB",
        help="size of the card in GB; decides how many frames are decoded at once (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    shared.add_size(parser, width=832, height=480, seconds=120.0)
    shared.add_policy(parser)
    shared.add_sampling(parser)


def run(options: argparse.Namespace) -> int:
    if not 0 < options.vram < float("inf"):
        raise PackForcingError(f"--vram is {options.vram:g}; expected the card's memory in GB, such as 16.")
    vram = int(options.vram * GB)
    config, trained = _model(options.model)
    settings = shared.chosen_settings(options)
    recipe = settings.recipe(trained)
    geometry = recipe.geometry
    dtype = DTYPES[options.dtype]
    sizes = geometry.height, geometry.width, geometry.frames_per_push
    decoder = vae_bytes(VAEConfig(), *sizes, dtype, vram=vram)
    plan = plan_render(config, recipe, dtype, decoder)
    if options.json:
        print(json.dumps({"vram_bytes": vram, "policy": recipe.policy.name, **plan.as_dict()}, indent=2))
    else:
        print(geometry.describe_length(settings.seconds))
        why = " (what the preset was trained with; --policy chooses another)" if options.policy == "auto" else ""
        print(f"KV cache policy: {recipe.policy.name}{why}.")
        rows, columns = geometry.latent_height, geometry.latent_width
        at_once = frames_at_once(VAEConfig(), rows, columns, dtype, torch.device("cpu"), vram)
        together = "one frame at a time" if at_once == 1 else f"{at_once} frames at once"
        print(f"Planned for a card with {options.vram:g} GB, which decodes {together} (--vram).")
        print(_table(plan))
        print(_verdict(plan.peak_bytes, vram))
    return 0


def _verdict(peak: int, vram: int) -> str:
    if peak <= vram:
        return f"It fits: about {size_text(peak)} of {size_text(vram)}."
    return (
        f"It does not fit: about {size_text(peak)} are needed, the card has {size_text(vram)}. Fewer frames in the KV "
        "cache need less (--sink-frames, --recent-frames, --top-k, --window-frames). In ComfyUI, so do weights in fp8 "
        "and a KV cache in int8."
    )


def _model(name: str):
    if name in WAN_SIZES:
        return WAN_SIZES[name], DEFAULT_FAMILY
    if Path(name).suffix == "":
        raise PackForcingError(f"Got model {name!r}; expected {', '.join(WAN_SIZES)} or the path of a checkpoint.")
    found = inspect_file(name)
    if not isinstance(found.config, WanConfig):
        raise PackForcingError(f"{found.path.name} is {found.title}, not a Wan transformer. {found.advice}")
    return found.config, found.family or DEFAULT_FAMILY


def _table(plan: RenderPlan) -> str:
    rows = [(ROWS.get(name, name.replace("_", " ")), _cell(name, value)) for name, value in plan.as_dict().items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:>12}" for name, value in rows)


def _cell(name: str, value: int | float | str) -> str:
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return size_text(int(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
