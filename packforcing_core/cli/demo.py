"""Render a demo film on the CPU, without any download of weights (random weights: it shows noise)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cache.config import SinkWindow
from ..checkpoint.families import DEFAULT_FAMILY
from ..demo import DEMO_SIZE, build_demo_model, build_demo_vae, demo_context
from ..geometry import GB
from ..render import Recipe, kv_shape
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
    model, context = build_demo_model(), demo_context(options.prompt)
    geometry = shared.chosen_geometry(options, DEFAULT_FAMILY.frames_per_block)
    policy = SinkWindow(window_frames=12, sink_frames=3)
    recipe = Recipe(geometry, policy, Denoising.of_family(DEFAULT_FAMILY), options.seed)
    full = 2 * kv_shape(model.config, geometry, model.dtype).frame_bytes * geometry.latent_frames
    console.print(geometry.describe_length(options.seconds))
    console.print(
        f"all of its history would be {full / GB:.2f} GB; the cache keeps {policy.window_frames} latent frames"
    )
    render_film(
        model,
        context,
        StreamingDecoder(build_demo_vae()),
        recipe,
        Path(options.output),
        shared.chosen_format(options),
        options.segment_blocks,
        console,
    )
    return 0
