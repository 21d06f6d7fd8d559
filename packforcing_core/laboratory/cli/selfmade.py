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
        "train compressor --checkpoint FILE --vae FILE --text-encoder FOLDER --hours N --folder F: the model makes its "
        "own clips, and the compressor learns on them; the same command again goes on",
    )
    add = own.add_argument
    add("--checkpoint", help="the block-by-block Wan checkpoint to make a compressor for")
    add("--hours", type=float, help="of all runs together; it ends cleanly when they are used. default: 8")
    add("--prompts", help="a file of prompts, one a line or a JSON list, instead of those that ship")
    add("--preset", help="how the checkpoint is sampled, where its file does not tell")
    add("--width", type=int, help="pixels of the clips. default: 832, the miniature's 128")
    add("--height", type=int, help="pixels of the clips. default: 480, the miniature's 64")
    add("--clip-frames", type=int, help="latent frames of a clip, in whole blocks. default: up to 21")
    add("--levels", type=int, help="noise levels at which a block is asked; 1 takes less memory. default: 2")
    add("--kv-int8", action="store_true", help="make the clips with a past in 8 bits, which takes less memory")
    add("--keep-layers", action="store_true", help="no gradient checkpointing: faster, several times the memory")
    add("--score-every", type=int, help="steps between two held-out scores. default: 100, the miniature's 50")
    add("--vram", type=float, help="GB to plan for. default: what the device has")
    add("--licence", help="written into the file. default: that of the checkpoint")


def refuse_without_checkpoint(options: argparse.Namespace) -> None:
    """PackForcingError for an option of this road that nothing would heed."""
    given = [name for name in OWN if getattr(options, name)]
    if given:
        raise PackForcingError(f"{_flag(given[0])} is for `train compressor --checkpoint FILE`, and there is none.")


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
        raise PackForcingError(f"--checkpoint needs {named} beside it: the VAE and the text encoder of the model.")
    foreign = [name for name in OTHERS if getattr(options, name)]
    if foreign:
        raise PackForcingError(f"{_flag(foreign[0])} is not for --checkpoint, which needs no such thing; leave it out.")
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
