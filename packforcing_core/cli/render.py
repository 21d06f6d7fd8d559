"""Render a prompt to an mp4 with a Wan2.1 checkpoint, without ComfyUI."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ..attention import BACKENDS, Capability, attention_named
from ..cache.config import PackForcing
from ..checkpoint.build import build_model
from ..checkpoint.families import any_size, choice_warnings
from ..checkpoint.load import Checkpoint, read_checkpoint
from ..checkpoint.merge import merged, named_lora, open_lora, require_fit
from ..compressor.high_res import HighRes
from ..compressor.weights import load_compressor, trained_span
from ..devices import DTYPES, usable_device
from ..errors import PackForcingError
from ..ranges import in_range
from ..recipe.plan import plan_render
from ..recipe.recipe import Recipe
from ..recipe.settings import Settings
from ..render.render import Models, Place, decoding_bytes, open_video
from ..text.context import load_context
from ..text.script import Script
from ..vae.load import load_vae
from . import options as shared
from .content_options import add_start, add_text, begun, check_start, encoder, timed_script
from .progress import build_console, run_render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--checkpoint", required=True, help="a Wan2.1 T2V file (.safetensors, .pt), see `packforcing inspect`"
    )
    files.add_argument("--vae", required=True, help="the Wan2.1 VAE (.safetensors, .pth), or one with narrower layers")
    files.add_argument(
        "--lora",
        metavar="FILE[@STRENGTH]",
        action="append",
        default=[],
        help="a LoRA to add to the checkpoint, in any of its usual layouts; may be given several times",
    )
    files.add_argument("--compressor", help="trained compressor weights for --policy packforcing; without: zero-shot")
    add_text(parser)
    add_start(parser)
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the model runs, such as cuda, cuda:1 or cpu",
    )
    parser.add_argument(
        "--decode-device",
        help="where the VAE decodes, and encodes for compression; a second GPU, such as cuda:1, works while the first "
        "one samples, and keeps the VAE out of its VRAM (default: --device)",
    )
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument(
        "--attention",
        choices=("auto", *BACKENDS),
        default="sdpa",
        help="attention backend of the transformer; compare with `packforcing bench`",
    )
    parser.add_argument(
        "--compile", action="store_true", help="run the layers through torch.compile (needs a C++ compiler)"
    )
    shared.add_size(parser, width=832, height=480, seconds=30.0)
    shared.add_policy(parser)
    shared.add_sampling(parser)
    shared.add_output(parser, default="packforcing.mp4")
    shared.add_folder(parser)


def run(options: argparse.Namespace) -> int:
    render_options(options, build_console())
    return 0


def render_options(options: argparse.Namespace, console: Console) -> Path:
    """Renders according to the options and returns the finished file."""
    settings, place = checked(options)
    device, dtype = _compute(options)
    checkpoint = read_checkpoint(options.checkpoint)
    loras = [(open_lora(file), strength) for file, strength in map(named_lora, options.lora)]
    for note in [note for lora, _ in loras for note in require_fit(lora, checkpoint.config)]:
        console.print(f"warning: {note}", style="yellow")
    compresses = options.compressor and options.policy == PackForcing.name
    recipe = settings.recipe(checkpoint.family, trained_span(options.compressor) if compresses else None)
    size, chosen = (settings.width, settings.height), settings.family(checkpoint.family)
    for warning in (*checkpoint.warnings, *choice_warnings(checkpoint.family, chosen, size)):
        console.print(f"warning: {warning}", style="yellow")
    decodes_on = usable_device(options.decode_device, "--decode-device") if options.decode_device else device
    vae = load_vae(options.vae, device=decodes_on, dtype=dtype)
    recipe = begun(options, settings, recipe, vae, any_size(checkpoint.family), console)
    console.print(recipe.describe_length(settings.seconds))
    config = checkpoint.config
    console.print(plan_render(config, recipe, dtype, decoding_bytes(vae, recipe.geometry, device)).describe())
    high_res = _high_res(options, checkpoint, recipe, device, dtype)
    if options.context:
        script = Script.of(load_context(options.context, config.text_dim))
    else:
        script = timed_script(settings, recipe, encoder(options, config.text_dim, device, dtype), console)
    attention = attention_named(options.attention, Capability.of(device, dtype, config.head_dim))
    checkpoint = replace(checkpoint, state_dict=merged(checkpoint.state_dict, loras, config))
    model = build_model(checkpoint, device, dtype, attention, options.compile)
    models = Models(model, vae, high_res=high_res, family=checkpoint.family, kernels=_kernels(options))
    return run_render(open_video(models, settings, place, recipe, script), console)


def checked(options: argparse.Namespace) -> tuple[Settings, Place]:
    """The settings and place from the options. Raises PackForcingError if a number is out of range."""
    check_start(options)
    for _, strength in map(named_lora, options.lora):
        in_range("lora_strength", strength)
    return shared.chosen_settings(options), shared.chosen_place(options)


def _kernels(options: argparse.Namespace) -> dict[str, str]:
    """The kernels, which affect the output bits as the weights do: a render resumes with those it started with."""
    chosen = {"attention": options.attention} if options.attention != "sdpa" else {}
    return {**chosen, "layers": "compiled"} if options.compile else chosen


def _high_res(
    options: argparse.Namespace, checkpoint: Checkpoint, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> HighRes | None:
    if not options.compressor:
        return None
    if recipe.partitions.bank is None:
        raise PackForcingError(
            f"--compressor is for policies that compress the past, and '{recipe.policy.name}' does not. "
            "Add --policy packforcing, or leave the compressor out."
        )
    frames = recipe.geometry.frames_per_block
    base, config = checkpoint.unrounded(), checkpoint.config
    return load_compressor(options.compressor, config, frames, device=device, dtype=dtype, base=base).high_res


def _compute(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    device = usable_device(options.device)
    if options.dtype == "auto":
        return device, torch.float32 if device.type == "cpu" else torch.bfloat16
    return device, DTYPES[options.dtype]
