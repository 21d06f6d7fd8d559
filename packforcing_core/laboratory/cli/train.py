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
        help="in this order: vae (the miniature's), latents (encodes the clips), teacher (a bidirectional model), "
        "causal (teacher forcing), twins (with the compressor), distill (few steps from many), self-forcing (its own "
        "rollouts, distribution matching); or compressor (the compressor alone, the model frozen; with --checkpoint "
        "from that file alone, without any video)",
    )
    parser.add_argument("--folder", required=True, help="where everything is written, and read by later stages")
    parser.add_argument("--size", default="miniature", help="miniature, or 1.3B")
    parser.add_argument("--steps", type=int, help="default: the size's")
    parser.add_argument(
        "--minutes",
        type=float,
        help="end after this time, if that is earlier, with the learning rate as low as at the end; a training that "
        "goes on counts the time before. 0: only write the weights of the newest state. Stage vae then lacks its last "
        "phases, of the longest clips; latents ends behind a shard, and the same command goes on",
    )
    parser.add_argument("--batch", type=int, help="clips a step, of all ranks together. default: the size's")
    parser.add_argument("--clips", type=int, help="of stage latents: clips of the toy world. default: the size's")
    parser.add_argument(
        "--worlds",
        help="of stage latents: the mix of the toy world, of one, two, return, unnamed, hidden and pan, such as "
        '"one=3,two=1,pan=2". '
        "default: the size's, else as it comes",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="for example cuda")
    parser.add_argument("--save-every", type=int, default=500, help="steps between two saved states")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing: less memory, a third slower")
    parser.add_argument("--compile", action="store_true", help="fuse the VAE's norms; takes a C++ compiler")
    parser.add_argument("--weights", help="a checkpoint to begin with, instead of what the stage before left")
    parser.add_argument("--compressor", help="a compressor to begin with, instead of what the stage before left")
    parser.add_argument(
        "--fusion",
        choices=("add", "concat"),
        help="of a compressor that is made anew (stages twins, self-forcing, compressor): how its branches meet, the "
        "paper's sum or side by side behind a gate that starts open. default: add",
    )
    parser.add_argument("--text", help="text.safetensors of the weights to begin with, where the folder has none yet")
    parser.add_argument(
        "--teacher",
        help="of stage self-forcing: the bidirectional model that judges, instead of the folder's, and of any size; of "
        "stage distill: the causal model to learn from, instead of the one it begins with",
    )
    parser.add_argument("--critic", help="of stage self-forcing: what the critic begins with. default: the teacher")
    parser.add_argument("--vae", help="a Wan VAE, instead of the folder's")
    parser.add_argument("--videos", help="of stage latents: a folder of NAME.mp4, each with its prompt in NAME.txt")
    parser.add_argument("--text-encoder", help="with --videos: folder of umT5-XXL in transformers' format")
    parser.add_argument("--negative", default="", help="with --videos: the prompt that guidance leads away from")
    parser.add_argument("--dry-run", action="store_true", help="of stage self-forcing: only say what it would take")
    parser.add_argument("--ranks", type=int, default=1, help="with --dry-run: processes that share the networks")
    selfmade.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    missing = [name for name in ("numpy", "tensorboard", "tqdm") if find_spec(name) is None]
    if missing:
        raise PackForcingError(
            f"Training needs {', '.join(missing)}, not installed here: pip install 'comfyui-packforcing[train]'."
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
            f"Got --dry-run with stage '{options.stage}'; it is for self-forcing, which takes the most. The others say "
            "what they take before they start."
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
            f"Got --fusion with stage '{options.stage}', which makes no compressor; expected one of "
            f"{', '.join(NEW_COMPRESSORS)}."
        )
    job = STAGES[options.stage](setup)
    if ranks.rank() == 0:
        print(plan_job(options.stage, job, setup))
        for path in job.begins:
            print(f"begins with {path}")
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
            print(f"{options.minutes:g} minutes are over; the same command goes on with the next shard.")
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
