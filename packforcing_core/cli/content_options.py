"""Options for the content of a render: its prompts over time, and its start image or video."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ..errors import PackForcingError
from ..geometry import pixel_frames
from ..ranges import in_range
from ..recipe.recipe import Recipe
from ..recipe.settings import Encode, Settings
from ..sampler.start import Start
from ..source import (
    adaptations,
    at_rate,
    blocks_in,
    frames_needed,
    given_by_frames,
    last_frames,
    part_used,
    repainted_by_frames,
)
from ..text.marks import unmarked
from ..text.script import Script
from ..text.timeline import describe
from ..text.umt5 import encode_prompts
from ..vae.wan_vae import WanVAE
from ..video.reader import probe, read_frames
from . import options as shared


def add_text(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("text")
    text = group.add_mutually_exclusive_group(required=True)
    shared.add_prompt(text, help="what to show; '[0s] ... [12.5s] ...' changes over time. Needs --text-encoder")
    text.add_argument(
        "--context", help="instead of a prompt: a .safetensors with its embeddings, `context` [1, L, 4096]"
    )
    group.add_argument("--text-encoder", help="folder of umT5-XXL in transformers' format, with its tokenizer")
    add_timing(group)


def add_timing(group: argparse._ArgumentGroup) -> None:
    """How one prompt cross-fades into the next."""
    group.add_argument(
        "--blend-seconds", type=float, default=0.0, help="cross-fade from one prompt to the next, in seconds"
    )
    group.add_argument(
        "--recache",
        action="store_true",
        help="recompute the KV cache of the visible blocks when the prompt changes (LongLive's KV recache)",
    )


def add_start(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("start", "begin with an image or a video instead of the prompt alone")
    start = group.add_mutually_exclusive_group()
    start.add_argument("--start-image", metavar="FILE", help="begin with this image, which the video shows first")
    start.add_argument(
        "--continue-video",
        metavar="FILE",
        help="continue from the end of this video; the result shows only what is new",
    )
    start.add_argument(
        "--video-to-video",
        metavar="FILE",
        help="regenerate this video from partial noise, see --denoise",
    )
    group.add_argument(
        "--given-seconds",
        type=float,
        default=3.0,
        help="how many seconds from the end of --continue-video the model is given",
    )
    group.add_argument(
        "--denoise",
        type=float,
        default=0.75,
        help="share of the denoising steps that --video-to-video runs, 0 to 1; 1 keeps nothing of the video",
    )


def check_start(options: argparse.Namespace) -> None:
    """Raises PackForcingError if a number of `add_start` is out of range."""
    for name in ("given_seconds", "denoise"):
        in_range(name, getattr(options, name))


def encoder(options: argparse.Namespace, text_dim: int, device: torch.device, dtype: torch.dtype) -> Encode:
    """The function that encodes the prompts of the options."""
    if not options.text_encoder:
        raise PackForcingError(
            "--prompt needs --text-encoder, the folder of umT5-XXL in transformers' format; "
            "or pass prompt embeddings with --context."
        )
    return partial(encode_prompts, folder=options.text_encoder, device=device, dtype=dtype, text_dim=text_dim)


def timed_script(settings: Settings, recipe: Recipe, encode: Encode, console: Console) -> Script:
    """The text of every block. With several prompts, prints the times at which they start."""
    for line in unmarked(settings.prompt):
        console.print(line, style="yellow")
    moments, script = settings.moments(recipe), settings.script(recipe, encode)
    if len(moments) > 1:
        prompts = [timed.prompt for timed in settings.prompts]
        for line in describe(moments, recipe.geometry, script, prompts):
            console.print(line, style="yellow" if line.startswith("Warning: ") else None)
    return script


def begun(
    options: argparse.Namespace, settings: Settings, recipe: Recipe, vae: WanVAE, any_size: bool, console: Console
) -> Recipe:
    """The recipe with the encoded start of the options; prints how the start image or video was adapted. `any_size`:
    whether the model can render other sizes.
    """
    given = options.start_image or options.continue_video or options.video_to_video
    if given:
        info = probe(given)
        rate = None if options.start_image else float(info.fps)
        adapted = adaptations(info.width, info.height, rate, recipe.geometry, any_size)
        seconds = options.given_seconds if options.continue_video else None
        part = () if rate is None else part_used(info.frames, rate, recipe.geometry, seconds)
        for note in (*info.notes, *adapted, *part):
            console.print(f"{Path(given).name}: {note}", style="yellow")
    return settings.begun(recipe, _start(options, recipe, vae))


def _start(options: argparse.Namespace, recipe: Recipe, vae: WanVAE) -> Start | None:
    g = recipe.geometry
    if options.start_image:
        return Start(given_by_frames(vae, [next(read_frames(Path(options.start_image)))], g))
    if options.continue_video:
        video = Path(options.continue_video)
        count = pixel_frames(blocks_in(options.given_seconds, g) * g.frames_per_block)
        info = probe(video)
        rate = float(info.fps)
        frames = read_frames(video, since=max(0, info.frames - frames_needed(rate, g.fps, count)))
        return Start(given_by_frames(vae, last_frames(frames, rate, g.fps, count), g), left_out=True)
    if options.video_to_video:
        video = Path(options.video_to_video)
        frames = at_rate(read_frames(video), float(probe(video).fps), g.fps)
        return Start(repainted=repainted_by_frames(vae, frames, g), denoise=options.denoise)
    return None
