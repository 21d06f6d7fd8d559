"""Render a prompt to an mp4 with a Wan2.1 checkpoint, without ComfyUI."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from rich.console import Console

from ..attention import BACKENDS, Capability, attention_named
from ..checkpoint.build import build_model
from ..checkpoint.families import DEFAULT_FAMILY, Family, choice_warnings
from ..checkpoint.load import Checkpoint, read_checkpoint
from ..compressor.high_res import HighRes
from ..compressor.weights import load_compressor, trained_span
from ..errors import PackForcingError
from ..folder.content import Content
from ..folder.fingerprint import fingerprint
from ..model.causal import CausalWan
from ..recipe.plan import plan_render
from ..recipe.recipe import Recipe
from ..render.filming import FilmJob, RenderEvent
from ..render.parts import build_twins
from ..render.recording import recorded_events, wanted_manifest
from ..sampler.denoising import Denoising
from ..vae.load import load_vae
from ..vae.memory import decode_bytes
from ..vae.wan_vae import WanVAE
from . import options as shared
from .content import add_start, add_text, begun, chosen_script
from .film import Target, build_console, free_name, render_recorded

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--checkpoint", required=True, help="a Wan2.1 T2V file (.safetensors, .pt), see `packforcing inspect`"
    )
    files.add_argument("--vae", required=True, help="the Wan2.1 VAE (.safetensors, .pth), or a smaller one of its kind")
    files.add_argument("--compressor", help="trained compressor weights for --policy packforcing; without: zero-shot")
    add_text(parser)
    add_start(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument(
        "--attention",
        choices=("auto", *BACKENDS),
        default="sdpa",
        help="the transformer's kernel; see packforcing bench",
    )
    parser.add_argument("--compile", action="store_true", help="run the layers through torch.compile (a C++ compiler)")
    shared.add_size(parser, width=832, height=480, seconds=30.0)
    shared.add_policy(parser)
    shared.add_sampling(parser)
    shared.add_output(parser, default="packforcing.mp4")
    shared.add_folder(parser)


def run(options: argparse.Namespace) -> int:
    console = build_console()
    device, dtype = _compute(options)
    target = shared.chosen_target(options)
    checkpoint = read_checkpoint(options.checkpoint)
    recipe = _recipe(options, checkpoint, console)
    vae = load_vae(options.vae, device=device, dtype=dtype)
    recipe = begun(options, recipe, vae, console)
    console.print(recipe.describe_length(options.seconds))
    g = recipe.geometry
    decoder_bytes = decode_bytes(vae.config, g.height, g.width, dtype)
    plan = plan_render(checkpoint.config, recipe, dtype, decoder_bytes)
    console.print(plan.describe())
    high_res = _high_res(options, checkpoint, recipe, device, dtype)
    script = chosen_script(options, recipe, checkpoint.config.text_dim, device, dtype, console)
    attention = attention_named(options.attention, Capability.of(device, dtype, checkpoint.config.head_dim))
    model = build_model(checkpoint, device, dtype, attention, options.compile)
    identity = model_identity(model, vae, high_res, recipe) | _kernels(options)
    content = Content(script, options.prompt or "", recipe.start.latents)
    folder = shared.open_folder(options, wanted_manifest(recipe, identity, content, device), content, recipe)
    recipe = recipe.begun_with(folder.content.start)

    def source(*, first: int, frugal: bool) -> Iterator[RenderEvent]:
        twins = build_twins(model, vae, high_res) if recipe.partitions.bank else None
        return recorded_events(model, recipe, folder, twins, first=first, frugal=frugal)

    render_recorded(source, folder, recipe, plan.cache_bytes, _job(options, target, vae, recipe), console)
    if options.folder is None:
        folder.remove()
    return 0


def model_identity(model: CausalWan, vae: WanVAE, high_res: HighRes | None, recipe: Recipe) -> dict[str, str | None]:
    """Fingerprints of all that decides what the model computes, and its dtype."""
    return {
        "model": fingerprint(model.net.state_dict()),
        "dtype": str(model.dtype),
        "VAE": fingerprint(vae.state_dict()) if recipe.compresses_sometime else None,
        "compressor": fingerprint(high_res.state_dict()) if high_res is not None else None,
    }


def _kernels(options: argparse.Namespace) -> dict[str, str]:
    """What besides the weights decides the bits: a render goes on with the kernels that it began with."""
    chosen = {"attention": options.attention} if options.attention != "sdpa" else {}
    return {**chosen, "layers": "compiled"} if options.compile else chosen


def _job(options: argparse.Namespace, target: Target, vae: WanVAE, recipe: Recipe) -> FilmJob:
    return FilmJob(
        free_name(target.path),
        target.video_format,
        target.blocks_per_segment,
        vae,
        fingerprint(vae.state_dict()),
        keep_growing=options.folder is not None,
    )


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
    config, base = checkpoint.config, checkpoint.state_dict
    return load_compressor(options.compressor, config, frames, device=device, dtype=dtype, base=base).high_res


def _compute(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise PackForcingError(f"Device {options.device!r} cannot be used: {error}. Try --device cpu.") from error
    if options.dtype == "auto":
        return device, torch.float32 if device.type == "cpu" else torch.bfloat16
    return device, DTYPES[options.dtype]


def _recipe(options: argparse.Namespace, checkpoint: Checkpoint, console: Console) -> Recipe:
    trained: Family = checkpoint.family or DEFAULT_FAMILY
    family = shared.chosen_family(options, trained)
    for warning in (*checkpoint.warnings, *choice_warnings(checkpoint.family, family)):
        console.print(f"warning: {warning}", style="yellow")
    geometry = shared.chosen_geometry(options, family.frames_per_block)
    policy = shared.chosen_policy(options, family).beside(
        trained_span(options.compressor) if options.compressor else None
    )
    return Recipe(geometry, policy, Denoising.of_family(family), options.seed)
