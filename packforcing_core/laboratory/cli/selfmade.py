"""`packforcing train compressor --checkpoint`: a compressor for a checkpoint, from that file alone."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from ...errors import PackForcingError
from ...geometry import GB

OWN = (
    *("hours", "prompts", "preset", "width", "height", "clip_frames", "levels", "kv_int8", "keep_layers"),
    *("score_every", "vram", "licence"),
)
OTHERS = ("minutes", "worlds", "weights", "compressor", "text", "teacher", "critic", "videos", "negative", "compile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group(
        "a compressor from a checkpoint alone",
        "train compressor --checkpoint FILE --vae FILE --text-encoder FOLDER --hours N --folder F: the model generates "
        "its own clips, and the compressor is trained on them; run the same command again to resume",
    )
    add = own.add_argument
    add("--checkpoint", help="the autoregressive Wan checkpoint to train a compressor for")
    add("--hours", type=float, help="time limit of all runs together; default: 8")
    add("--prompts", help="a file of prompts (one per line, or a JSON list) instead of the 200 that are included")
    add("--preset", help="how the checkpoint is sampled, if its file does not say")
    add("--width", type=int, help="of the clips, in pixels; default: 832 (miniature: 128)")
    add("--height", type=int, help="of the clips, in pixels; default: 480 (miniature: 64)")
    add("--clip-frames", type=int, help="latent frames per clip, in whole blocks; default: up to 21")
    add("--levels", type=int, help="noise levels per block and step; 1 takes less memory; default: 2")
    add("--kv-int8", action="store_true", help="generate the clips with an int8 KV cache, which takes less memory")
    add("--keep-layers", action="store_true", help="no gradient checkpointing: faster, several times the memory")
    add("--score-every", type=int, help="steps between two held-out scores; default: 100 (miniature: 50)")
    add("--vram", type=float, help="GB of VRAM to plan for; default: what the device has")
    add("--licence", help="licence to write into the file; default: that of the checkpoint")


def refuse_without_checkpoint(options: argparse.Namespace) -> None:
    """Raises PackForcingError for an option of `--checkpoint` if there is no --checkpoint."""
    given = [name for name in OWN if getattr(options, name)]
    if given:
        raise PackForcingError(
            f"{_flag(given[0])} is for `train compressor --checkpoint FILE`; --checkpoint is missing."
        )


def run(options: argparse.Namespace) -> int:
    from ..training.selfmade.run import announced, make_compressor, prepared

    order = _order(options)
    if options.dry_run:
        announced(prepared(order), print)
        return 0
    for path in make_compressor(order, lambda line: print(line, flush=True)):
        print(path)
    return 0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _order(options: argparse.Namespace):
    from ..training.selfmade.run import CLIPS, Order

    if options.stage != "compressor":
        raise PackForcingError(f"Got --checkpoint with stage '{options.stage}'; it is for `train compressor`.")
    missing = [name for name in ("vae", "text_encoder") if not getattr(options, name)]
    if missing:
        named = " and ".join(map(_flag, missing))
        raise PackForcingError(f"--checkpoint needs {named}: the VAE and the text encoder of the model.")
    foreign = [name for name in OTHERS if getattr(options, name)]
    if foreign:
        raise PackForcingError(f"{_flag(foreign[0])} has no effect with --checkpoint; remove it.")
    if bool(options.width) != bool(options.height):
        raise PackForcingError("Give both --width and --height, or neither.")
    levels = 2 if options.levels is None else options.levels
    if levels < 1:
        raise PackForcingError(f"Got --levels {levels}; expected 1 or more.")
    said = {"licence": options.licence} if options.licence else {}
    return Order(
        Path(options.checkpoint),
        Path(options.vae),
        Path(options.text_encoder),
        Path(options.folder),
        8.0 if options.hours is None else options.hours,
        Path(options.prompts) if options.prompts else None,
        options.preset,
        (options.width, options.height) if options.width else None,
        options.clip_frames,
        options.clips or CLIPS,
        options.seed,
        torch.device(options.device),
        kv_int8=options.kv_int8,
        levels=levels,
        recompute=not options.keep_layers,
        fusion=options.fusion or "add",
        steps=options.steps or math.inf,
        batch=options.batch,
        score_every=options.score_every,
        vram=int(options.vram * GB) if options.vram else None,
        **said,
    )
