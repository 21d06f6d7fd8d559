"""Train the miniature, or Wan 1.3B on your own videos, stage by stage; run the same command again to resume."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from ...errors import PackForcingError
from ...text.umt5 import encode_prompts
from . import selfmade


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage",
        help="in this order: vae (of the miniature), latents (encodes the clips), teacher (a bidirectional model), "
        "causal (teacher forcing), twins (model and compressor together), distill (few steps), self-forcing (own "
        "rollouts, distribution matching). Or compressor: the compressor alone, with the model frozen; with "
        "--checkpoint it needs that file alone and no video",
    )
    parser.add_argument("--folder", required=True, help="the folder that all stages write to and read from")
    parser.add_argument("--size", default="miniature", help="miniature, or 1.3B")
    parser.add_argument("--steps", type=int, help="training steps; default: those of --size")
    parser.add_argument(
        "--minutes",
        type=float,
        help="end after this time if --steps takes longer; the learning rate is scheduled for it. Earlier runs in the "
        "folder count too. 0: only write the weights of the newest state. Stage vae then skips its last phases (the "
        "longest clips); stage latents ends after a shard, and the same command continues",
    )
    parser.add_argument("--batch", type=int, help="clips per step, of all ranks together; default: that of --size")
    parser.add_argument("--clips", type=int, help="stage latents: number of toy world clips; default: that of --size")
    parser.add_argument(
        "--worlds",
        help="stage latents: the mix of toy world clips (one, two, return, unnamed, hidden, pan), for example "
        '"one=3,two=1,pan=2"; default: that of --size, else the toy world\'s own',
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--device", default="cpu", help="for example cuda")
    parser.add_argument("--save-every", type=int, default=500, help="steps between two saved states")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing: less memory, a third slower")
    parser.add_argument("--compile", action="store_true", help="fuse the norms of the VAE; needs a C++ compiler")
    parser.add_argument("--weights", help="a checkpoint to start from, instead of the previous stage's")
    parser.add_argument("--compressor", help="a compressor to start from, instead of the previous stage's")
    parser.add_argument(
        "--fusion",
        choices=("add", "concat"),
        help="in stages that create an untrained compressor: how its two branches are joined. add: "
        "their sum, as in the paper; concat: concatenated, with a gate that starts half open; default: add",
    )
    parser.add_argument("--text", help="text.safetensors that belongs to --weights, if the folder has none yet")
    parser.add_argument(
        "--teacher",
        help="stage self-forcing: the bidirectional model that gives the real score, of any size, instead of the "
        "folder's; stage distill: the causal model to learn from, instead of the one it starts from",
    )
    parser.add_argument("--critic", help="stage self-forcing: what the critic starts from; default: the teacher")
    parser.add_argument("--vae", help="a Wan VAE, instead of the folder's")
    parser.add_argument("--videos", help="stage latents: a folder of NAME.mp4, each with its prompt in NAME.txt")
    parser.add_argument(
        "--text-encoder", help="with --videos or --checkpoint: folder of umT5-XXL in transformers' format"
    )
    parser.add_argument("--negative", default="", help="with --videos: the negative prompt of the guidance")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="stage self-forcing, or compressor with --checkpoint: print the memory it takes and stop",
    )
    parser.add_argument("--ranks", type=int, default=1, help="with --dry-run: processes that share the networks")
    selfmade.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    missing = [name for name in ("numpy", "tensorboard", "tqdm") if find_spec(name) is None]
    if missing:
        raise PackForcingError(
            f"Training needs {', '.join(missing)}, which is not installed: in the git checkout of the pack run pip "
            "install '.[train]'."
        )
    from ..training import ranks
    from ..training.presets import SIZES

    if options.checkpoint:
        return selfmade.run(options)
    selfmade.refuse_without_checkpoint(options)
    if options.size not in SIZES:
        raise PackForcingError(f"Got size {options.size!r}; expected one of {', '.join(SIZES)}.")
    if options.dry_run:
        _dry_run(options)
        return 0
    device = ranks.join(torch.device(options.device))
    try:
        _run(options, device)
    finally:
        ranks.leave()
    return 0


def _dry_run(options: argparse.Namespace) -> None:
    from ..training.dry_run import dry_run
    from ..training.presets import SIZES

    if options.stage != "self-forcing":
        raise PackForcingError(
            f"Got --dry-run with stage '{options.stage}'; it is for self-forcing, which takes the most memory. The "
            "other stages print what they take before they start."
        )
    samples = -(-(options.batch or options.ranks) // options.ranks)
    for line in dry_run(SIZES[options.size], options.ranks, options.recompute, samples, options.fusion or "add"):
        print(line)


def _run(options: argparse.Namespace, device: torch.device) -> None:
    from ..training import ranks
    from ..training.loop import Training
    from ..training.plans import plan_job
    from ..training.stages import NEW_COMPRESSORS, STAGES

    setup = _setup(options, device)
    if options.stage == "latents":
        _encode(options, setup)
        return
    if options.stage not in STAGES:
        raise PackForcingError(f"Got stage {options.stage!r}; expected one of latents, {', '.join(STAGES)}.")
    if options.fusion and options.stage not in NEW_COMPRESSORS:
        raise PackForcingError(
            f"Got --fusion with stage '{options.stage}', which trains no compressor; expected one of "
            f"{', '.join(NEW_COMPRESSORS)}."
        )
    job = STAGES[options.stage](setup)
    if ranks.rank() == 0:
        print(plan_job(options.stage, job, setup))
        for path in job.begins:
            print(f"starts from {path}")
    training = Training(job.stage, job.steps, setup.folder / options.stage, options.save_every, options.minutes)
    for _ in training.run():
        pass
    for path in job.export(training):
        if ranks.rank() == 0:
            print(path)


def _encode(options: argparse.Namespace, setup) -> None:
    began = time.monotonic()
    for path in _latents(options, setup):
        print(path, flush=True)
        if options.minutes is not None and time.monotonic() - began >= 60 * options.minutes:
            print(f"{options.minutes:g} minutes are over; run the same command again to continue with the next shard.")
            return


def _setup(options: argparse.Namespace, device: torch.device):
    from ..training.presets import SIZES
    from ..training.setup import Setup

    names = "weights", "compressor", "teacher", "critic", "vae", "text"
    given = {name: Path(file) for name in names if (file := getattr(options, name))}
    return Setup(
        SIZES[options.size],
        Path(options.folder),
        options.steps,
        options.batch,
        options.seed,
        device,
        options.recompute,
        options.compile,
        fusion=options.fusion,
        **given,
    )


def _latents(options: argparse.Namespace, setup) -> Iterator[Path]:
    from ..training.clips import Worlds
    from ..training.data import encode_little_world, encode_unprompted, encode_videos
    from ..training.initial import load_training_vae

    vae, folder, size = load_training_vae(setup), setup.folder / "latents", setup.size
    if not options.videos:
        if size.vae is None:
            raise PackForcingError(f"At size {size.name} give your videos as --videos.")
        worlds = Worlds.parse(options.worlds) if options.worlds else size.worlds
        clips = options.clips or size.encoded_clips
        yield from encode_little_world(vae, folder, clips, size.clips, setup.seed, worlds=worlds)
        return
    if not options.text_encoder:
        raise PackForcingError("--videos needs --text-encoder, the folder of umT5-XXL in transformers' format.")
    text = partial(encode_prompts, folder=options.text_encoder, device=setup.device, text_dim=size.model.text_dim)
    yield from encode_unprompted(setup.exported("unprompted"), text, options.negative)
    yield from encode_videos(vae, Path(options.videos), folder, size.clips, text)
