"""Train the miniature, or Wan 1.3B on your own videos, stage by stage; the same command again goes on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from ..errors import PackForcingError
from ..text.umt5 import encode_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage",
        help="in this order: vae (the miniature's), latents (encodes the clips), teacher (a bidirectional model), "
        "causal (teacher forcing), twins (with the compressor)",
    )
    parser.add_argument("--folder", required=True, help="where everything is written, and read by later stages")
    parser.add_argument("--size", default="miniature", help="miniature, or 1.3B")
    parser.add_argument("--steps", type=int, help="default: the size's")
    parser.add_argument("--batch", type=int, help="clips a step, of all ranks together. default: the size's")
    parser.add_argument("--clips", type=int, help="of stage latents: clips of the little world. default: the size's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="for example cuda")
    parser.add_argument("--save-every", type=int, default=500, help="steps between two saved states")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing: less memory, a third slower")
    parser.add_argument("--compile", action="store_true", help="fuse the VAE's norms; takes a C++ compiler")
    parser.add_argument("--weights", help="a checkpoint to begin with, instead of what the stage before left")
    parser.add_argument("--vae", help="a Wan VAE, instead of the folder's")
    parser.add_argument("--videos", help="of stage latents: a folder of NAME.mp4, each with its prompt in NAME.txt")
    parser.add_argument("--text-encoder", help="with --videos: folder of umT5-XXL in transformers' format")
    parser.add_argument("--dry-run", action="store_true", help="build the networks without memory, say what they take")
    parser.add_argument("--ranks", type=int, default=1, help="with --dry-run: processes that share the networks")


def run(options: argparse.Namespace) -> int:
    missing = [name for name in ("numpy", "tensorboard", "tqdm") if find_spec(name) is None]
    if missing:
        raise PackForcingError(
            f"Training needs {', '.join(missing)}, not installed here: pip install 'comfyui-packforcing[train]'."
        )
    from ..training import ranks
    from ..training.presets import SIZES

    if options.size not in SIZES:
        raise PackForcingError(f"Got size {options.size!r}; expected one of {', '.join(SIZES)}.")
    if options.dry_run:
        from ..training.dry_run import dry_run

        for line in dry_run(SIZES[options.size], options.ranks, options.recompute):
            print(line)
        return 0
    device = ranks.join(torch.device(options.device))
    try:
        _run(options, device)
    finally:
        ranks.leave()
    return 0


def _run(options: argparse.Namespace, device: torch.device) -> None:
    from ..training import ranks
    from ..training.loop import Training
    from ..training.stages import STAGES, plan_job

    setup = _setup(options, device)
    if options.stage == "latents":
        for path in _latents(options, setup):
            print(path)
        return
    if options.stage not in STAGES:
        raise PackForcingError(f"Got stage {options.stage!r}; expected one of latents, {', '.join(STAGES)}.")
    job = STAGES[options.stage](setup)
    if ranks.rank() == 0:
        print(plan_job(options.stage, job, setup))
    training = Training(job.stage, job.steps, setup.folder / options.stage, options.save_every)
    for _ in training.run():
        pass
    for path in job.export(training):
        if ranks.rank() == 0:
            print(path)


def _setup(options: argparse.Namespace, device: torch.device):
    from ..training.presets import SIZES
    from ..training.stages import Setup

    return Setup(
        SIZES[options.size],
        Path(options.folder),
        options.steps,
        options.batch,
        options.seed,
        device,
        options.recompute,
        options.compile,
        Path(options.weights) if options.weights else None,
        Path(options.vae) if options.vae else None,
    )


def _latents(options: argparse.Namespace, setup) -> Iterator[Path]:
    from ..training.data import encode_little_world, encode_videos
    from ..training.stages import load_training_vae

    vae, folder, clips = load_training_vae(setup), setup.folder / "latents", setup.size.clips
    if not options.videos:
        if setup.size.vae is None:
            raise PackForcingError(f"At size {setup.size.name} give your films as --videos.")
        return encode_little_world(vae, folder, options.clips or setup.size.encoded_clips, clips, setup.seed)
    if not options.text_encoder:
        raise PackForcingError("--videos needs --text-encoder, the folder of umT5-XXL in transformers' format.")
    text = partial(encode_prompts, folder=options.text_encoder, device=setup.device, text_dim=setup.size.model.text_dim)
    return encode_videos(vae, Path(options.videos), folder, clips, text)
