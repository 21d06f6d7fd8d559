"""`packforcing train compressor --checkpoint`: a compressor for a checkpoint, from that file alone."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from ...errors import PackForcingError
from ...geometry import GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group(
        "a compressor from a checkpoint alone",
        "train compressor --checkpoint FILE --vae FILE --text-encoder FOLDER --hours N --folder F: the model makes its "
        "own clips, and the compressor learns on them; the same command again goes on",
    )
    own.add_argument("--checkpoint", help="the block-by-block Wan checkpoint to make a compressor for")
    own.add_argument(
        "--hours", type=float, default=8.0, help="of all runs together; it ends cleanly when they are used"
    )
    own.add_argument("--prompts", help="a file of prompts, one a line or a JSON list, instead of those that ship")
    own.add_argument("--preset", help="how the checkpoint is sampled, where its file does not tell")
    own.add_argument("--width", type=int, help="pixels of the clips. default: 832, the miniature's 128")
    own.add_argument("--height", type=int, help="pixels of the clips. default: 480, the miniature's 64")
    own.add_argument("--clip-frames", type=int, help="latent frames of a clip, in whole blocks. default: up to 21")
    own.add_argument(
        "--levels", type=int, default=2, help="noise levels at which a block is asked; 1 takes less memory"
    )
    own.add_argument(
        "--kv-int8", action="store_true", help="make the clips with a past in 8 bits, which takes less memory"
    )
    own.add_argument(
        "--keep-layers", action="store_true", help="no gradient checkpointing: faster, several times the memory"
    )
    own.add_argument(
        "--score-every", type=int, help="steps between two held-out scores. default: 100, the miniature's 50"
    )
    own.add_argument("--vram", type=float, help="GB to plan for. default: what the device has")
    own.add_argument("--licence", help="written into the file. default: that of the checkpoint")


def run(options: argparse.Namespace) -> int:
    from ..training.selfmade.run import announced, make_compressor, prepared

    order = _order(options)
    if options.dry_run:
        announced(prepared(order), print)
        return 0
    for path in make_compressor(order, lambda line: print(line, flush=True)):
        print(path)
    return 0


def _order(options: argparse.Namespace):
    from ..training.selfmade.run import CLIPS, Order

    if options.stage != "compressor":
        raise PackForcingError(f"Got --checkpoint with stage '{options.stage}'; it is for `train compressor`.")
    missing = [name for name in ("vae", "text_encoder") if not getattr(options, name)]
    if missing:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise PackForcingError(f"--checkpoint needs {named} beside it: the VAE and the text encoder of the model.")
    if bool(options.width) != bool(options.height):
        raise PackForcingError("Give both --width and --height, or neither.")
    if options.levels < 1:
        raise PackForcingError(f"Got --levels {options.levels}; expected 1 or more.")
    said = {"licence": options.licence} if options.licence else {}
    return Order(
        *(Path(file) for file in (options.checkpoint, options.vae, options.text_encoder, options.folder)),
        options.hours,
        Path(options.prompts) if options.prompts else None,
        options.preset,
        (options.width, options.height) if options.width else None,
        options.clip_frames,
        options.clips or CLIPS,
        options.seed,
        torch.device(options.device),
        kv_int8=options.kv_int8,
        levels=options.levels,
        recompute=not options.keep_layers,
        steps=options.steps or math.inf,
        batch=options.batch,
        score_every=options.score_every,
        vram=int(options.vram * GB) if options.vram else None,
        **said,
    )
