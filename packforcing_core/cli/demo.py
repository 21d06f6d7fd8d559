"""Render a demo film on the CPU, without any download of weights (random weights: it shows noise)."""

from __future__ import annotations

import argparse

from ..cache.config import POLICY_PRESETS
from ..checkpoint.families import DEFAULT_FAMILY
from ..demo import DEMO_SIZE, build_demo_model, build_demo_vae, demo_context
from ..plan import plan_render
from ..render import Recipe, build_twins, latent_events
from ..sampler.rollout import Denoising
from ..vae.streaming import StreamingDecoder
from . import options as shared
from .film import build_console, render_film


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default="a red circle and a blue square bounce on a dark background")
    parser.add_argument("--seed", type=int, default=0)
    shared.add_size(parser, width=DEMO_SIZE[0], height=DEMO_SIZE[1], seconds=30.0)
    shared.add_output(parser, default="packforcing-demo.mp4")


def run(options: argparse.Namespace) -> int:
    console = build_console()
    console.print("PackForcing demo: a small Wan with random weights. It has learnt nothing yet, so the film is noise.")
    model = build_demo_model()
    geometry = shared.chosen_geometry(options, DEFAULT_FAMILY.frames_per_block)
    recipe = Recipe(
        geometry, POLICY_PRESETS["PackForcing zero-shot"], Denoising.of_family(DEFAULT_FAMILY), options.seed
    )
    plan = plan_render(model.config, recipe, model.dtype)
    console.print(geometry.describe_length(options.seconds))
    console.print(plan.describe_memory())
    vae = build_demo_vae()
    latents = latent_events(model, demo_context(options.prompt), recipe, twins=build_twins(model, vae, None))
    target = shared.chosen_target(options)
    render_film(latents, recipe, plan.cache_bytes, StreamingDecoder(vae), target, console)
    return 0
