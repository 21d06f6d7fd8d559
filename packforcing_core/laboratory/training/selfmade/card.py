"""The metadata of a trained compressor, and the model card that is written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ....checkpoint.kinds import size_name
from ....compressor import base as bases
from ....compressor.high_res import HighRes
from ....compressor.weights import MID_SPAN, CompressorInfo, save_compressor
from .base import Base
from .score import Scores

LICENCE = "that of its base model, whose outputs it learnt from"


def told(base: Base, clips: int, seed: int, licence: str, scores: Scores) -> dict[str, str]:
    """Returns the training metadata of the compressor's file, by the keys of `compressor.weights.TOLD_KEYS`."""
    best, g = scores.best, base.clip
    return {
        MID_SPAN: f"{base.asked.mid_span:g}",
        "base_family": base.family.title,
        "memory": json.dumps({"policy": base.asked.name, **asdict(base.asked)}),
        "size": f"{g.width}x{g.height}",
        "clips": f"{clips} clips of {g.latent_frames} latent frames, made by the base model itself",
        "steps": str(best.steps if best else 0),
        "hours": f"{best.hours:.2f}" if best else "0",
        "data_seed": str(seed),
        "licence": licence,
        "score": json.dumps({"compressor": dict(best.errors) if best else {}, **scores.references}),
    }


def write(
    path: Path, high_res: HighRes, weights: Mapping[str, Tensor], base: Base, said: Mapping[str, str], scores: Scores
) -> list[Path]:
    """Writes the compressor, which replaces an existing one in one step, and its card; returns both paths. `weights`
    are the base model's; the compressor's file keeps samples of them, to recognise its base model.
    """
    name = f"{base.path.stem} ({size_name(base.config)})"
    how = "packforcing train compressor --checkpoint: its own clips"
    info = CompressorInfo(name, base.clip.frames_per_block, how, bases.sampled(weights), said)
    save_compressor(path, high_res, info)
    card = path.with_suffix(".md")
    card.write_text(text(path.name, name, base, said, scores), encoding="utf-8")
    return [path, card]


def text(file: str, name: str, base: Base, said: Mapping[str, str], scores: Scores) -> str:
    """Returns the model card as Markdown."""
    rows = {**scores.references, "this compressor": dict(scores.best.errors) if scores.best else {}}
    distances = list(next(iter(rows.values()), {}))
    table = [
        "| | " + " | ".join(f"{seconds} s" for seconds in distances) + " |",
        "|---|" + "---:|" * len(distances),
        *(
            f"| {row} | " + " | ".join(f"{errors[s]:.5f}" for s in distances) + " |"
            for row, errors in rows.items()
            if errors
        ),
    ]
    return "\n".join(
        [
            f"# {file}",
            "",
            f"A compressor for the PackForcing policy of {name}, {base.family.title}. It fits that checkpoint alone,",
            f"with blocks of {base.clip.frames_per_block} latent frames. Put it into",
            "`models/packforcing_compressors` and choose it in the PackForcing Model Loader, or give it to",
            "`packforcing render --policy packforcing --compressor`.",
            "",
            f"Trained on {said['clips']}, {said['size']} pixels, seed {said['data_seed']}, {said['steps']} steps in "
            f"{said['hours']} hours with making the clips. No video was used.",
            "",
            "Error of the next block's flow relative to the full history, on held-out clips of the same kind, by the",
            "distance in time to what has to be remembered (lower is better; 'no mid' is without compressed blocks):",
            "",
            *table,
            "",
            f"Licence: {said['licence']}.",
            "",
        ]
    )
