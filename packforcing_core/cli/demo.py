"""Render a video of the toy world on the CPU, with the trained miniature that comes with the package."""

from __future__ import annotations

import argparse

import torch
from rich.console import Console

from ..cache.config import PackForcing
from ..compressor.high_res import HighRes
from ..devices import DTYPES
from ..miniature.load import (
    FAMILY,
    MEMORY,
    PROMPT,
    SIZE,
    fast_dtype,
    load_compressor,
    load_model,
    load_text,
    load_vae,
)
from ..miniature.world import FPS
from ..render.render import Models, open_video
from ..text.timeline import parse_timeline
from ..text.words import EMPTY, NO_WEIGHTS, WordEncoder
from . import options as shared
from .content_options import add_timing, timed_script
from .progress import build_console, run_render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("text")
    shared.add_prompt(
        text.add_mutually_exclusive_group(),
        default=PROMPT,
        help="what to show, in the toy world's vocabulary; '[0s] ... [30s] ...' changes over time",
    )
    add_timing(text)
    parser.add_argument("--seconds", type=float, default=120.0, help="length; rounded to whole blocks")
    parser.add_argument("--seed", type=int, default=0, help=shared.SEED_HELP)
    parser.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 on a CPU with units for it, else fp32",
    )
    parser.add_argument(
        "--compressor",
        choices=("auto", "none"),
        default="auto",
        help="auto: the trained one, if the package has it and the policy can use it; none: zero-shot",
    )
    shared.add_policy(parser)
    shared.add_output(parser, default="packforcing-demo.mp4", zoom=4)
    shared.add_folder(parser)
    # The sizes that the miniature was trained at, and the policy that it was made to show.
    parser.set_defaults(policy=PackForcing.name, width=SIZE[0], height=SIZE[1], fps=float(FPS), preset="auto")


def run(options: argparse.Namespace) -> int:
    dtype = fast_dtype() if options.dtype == "auto" else DTYPES[options.dtype]
    if dtype is torch.bfloat16:
        torch.set_num_threads(1)  # Its operations are too small for threads: they would only wait for each other.
    console, place = build_console(), shared.chosen_place(options)
    words = load_text()
    say_vocabulary(words, " ".join(timed.prompt for timed in parse_timeline(options.prompt)), console)
    settings = shared.chosen_settings(options, knobs=_knobs(options))
    recipe = settings.recipe(FAMILY)
    script = timed_script(settings, recipe, lambda prompts: words(prompts).split(1), console)
    models = Models(load_model(dtype), load_vae(dtype), high_res=_high_res(options, dtype), family=FAMILY)
    render = open_video(models, settings, place, recipe, script)
    console.print(recipe.describe_length(settings.seconds))
    console.print(render.plan.describe(length=False))
    console.print(render.plan.describe_memory())
    run_render(render, console)
    return 0


def say_vocabulary(words: WordEncoder, prompt: str, console: Console) -> None:
    """Warns about an empty prompt, about weights and about words that the miniature does not know, and lists the words
    that it knows.
    """
    if words.weighted(prompt):
        console.print(NO_WEIGHTS, style="yellow")
    unknown = words.unknown(prompt)
    if unknown:
        console.print(f"warning: the miniature does not know these words: {', '.join(unknown)}", style="yellow")
        console.print(f"it knows {', '.join(words.vocabulary)}")
    elif not prompt.strip():
        console.print(EMPTY, style="yellow")


def _high_res(options: argparse.Namespace, dtype: torch.dtype) -> HighRes | None:
    if options.compressor == "none" or options.policy != PackForcing.name:
        return None
    loaded = load_compressor(dtype=dtype)
    return loaded.high_res if loaded else None


def _knobs(options: argparse.Namespace) -> dict[str, object]:
    """The knobs from the options; with the policy that the miniature was trained with, that policy's knobs."""
    own = (
        {knob.name: getattr(MEMORY, knob.name) for knob in MEMORY.knobs()} if options.policy == PackForcing.name else {}
    )
    return {**own, **shared.given_knobs(options)}
