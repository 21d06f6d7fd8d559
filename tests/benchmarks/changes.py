"""What a prompt change shows on the miniature: a cut, a flush, a KV recache, a soft change, and a video of its own.

    python -m tests.benchmarks.changes --output FOLDER [--seeds 1000 1012] [--changes cut flush ...] [--policy NAME]

Six blocks under one prompt, then four under another, each block 16 frames, judged by the checker. In shots "new" the
object, its place and the background change; in shots "same" only the background does, and the object stays. Every
video is a line of FOLDER/changes.jsonl; a line that is there is not made again. A table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import hypot
from pathlib import Path

import numpy as np
import torch

from packforcing_core import api
from packforcing_core.laboratory.evaluation.little_world.checker import check_video, read_video
from packforcing_core.laboratory.evaluation.statistics import share_interval
from packforcing_core.render.parts import build_cache, build_compression
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.rollout import rollout
from packforcing_core.text.script import Change, Cue, Script
from packforcing_core.vae.decoders import push_block, streaming_decoder
from packforcing_core.vae.receptive import warm_up
from packforcing_core.vae.streaming import to_frames

BEFORE, AFTER = 6, 4
"""Blocks. After six, sink and recent frames are full, and three blocks are in the bank of the default policy."""
FRAMES = 16
CHANGES = ("own", "cut", "cut_with_few_steps", "flush", "recache", "soft")
"""`own`: a video of its own with the same seed; `cut_with_few_steps`: without the longer schedule of a first block."""
COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square")  # The miniature often deforms triangles, with and without a change.
PLACES = ("top left", "bottom right", "top middle", "bottom left", "top right", "bottom middle")
BACKGROUNDS = ("dark", "grey", "purple", "teal")


@dataclass(frozen=True)
class Scene:
    colour: str
    shape: str
    place: str
    background: str

    @property
    def prompt(self) -> str:
        return f"a {self.colour} {self.shape} at the {self.place} bounces on a {self.background} background"

    @property
    def anywhere(self) -> str:
        """The prompt without its place, where a video begins and nothing else has to be."""
        return f"a {self.colour} {self.shape} bounces on a {self.background} background"


def scenes(seed: int) -> tuple[Scene, Scene]:
    """Two scenes that have neither colour nor background in common."""
    n = seed - 1000
    first = Scene(COLOURS[n % 5], SHAPES[n % 2], PLACES[n % 6], BACKGROUNDS[n % 4])
    colour, background = COLOURS[(n + 2 + n // 5) % 5], BACKGROUNDS[(n + 1 + n // 4) % 4]
    return first, Scene(
        COLOURS[(n + 3) % 5] if colour == first.colour else colour,
        SHAPES[(n + 1 + n // 4) % 2],
        PLACES[(n + 1 + n // 6) % 6],
        BACKGROUNDS[(n + 2) % 4] if background == first.background else background,
    )


def measured(seed: int, change: str, shot: str, policy: str) -> dict:
    """What the four blocks behind the change show, in shares of each block's frames."""
    old, new = scenes(seed)
    new = new if shot == "new" else replace(old, background=new.background)
    prompt = new.prompt if shot == "new" or change == "own" else new.anywhere
    before = [] if change == "own" else _before(seed, old.prompt, policy)
    frames = _behind(seed, change, prompt, old.prompt, policy, before)
    ends = np.cumsum([len(block) for block in frames])
    whole = [frame for block in frames for frame in block]
    shown = [check_video(block, new.anywhere) for block in frames]
    was = [check_video(block, old.anywhere) for block in frames]
    return {
        "seed": seed, "change": change, "shot": shot, "policy": policy, "old": old.prompt, "new": prompt,
        "right_within_two_blocks": check_video(whole[ends[1] :], new.anywhere).right,
        "right": [report.right for report in shown],
        "new_background": [report.background_right for report in shown],
        "old_object": [report.objects_right for report in was],
        "old_background": [report.background_right for report in was],
        "moved": _distance(new.colour, before[-1:], whole[:1]),
    }  # fmt: skip


@cache
def _models() -> api.Models:
    return api.load_miniature(torch.float32)


@cache
def _before(seed: int, prompt: str, policy: str) -> list[BlockDone]:
    return list(_blocks(seed, Script((Cue(0, _text(prompt)),)), policy, BEFORE))


def _behind(
    seed: int, change: str, prompt: str, old: str, policy: str, before: Sequence[BlockDone]
) -> list[list[np.ndarray]]:
    if change == "own":
        script = Script((Cue(0, _text(prompt)),))
    else:
        kind: Change = "cut" if change.startswith("cut") else "flush" if change == "flush" else ""
        script = Script((Cue(0, _text(old)), Cue(BEFORE, _text(prompt), recache=change == "recache", change=kind)))
    end = AFTER + len(before)
    made = _blocks(seed, script, policy, end, before, few_steps=change == "cut_with_few_steps")
    return [list(to_frames(done.video)) for done in made if done.block >= len(before)]


def _blocks(
    seed: int, script: Script, policy: str, end: int, known: Sequence[BlockDone] = (), few_steps: bool = False
) -> Iterable[BlockDone]:
    """The first blocks of ten, with their video; that of known ones is not decoded again."""
    models = _models()
    recipe = api.Settings(seed=seed, seconds=10, width=128, height=64, policy=policy).recipe(models.family, models.span)
    recipe = replace(recipe, geometry=replace(recipe.geometry, blocks=BEFORE + AFTER))
    denoising = replace(recipe.denoising, first_block=None) if few_steps else recipe.denoising
    compression = build_compression(models.model, models.vae, models.high_res) if recipe.partitions.bank else None
    decoder = compression.decoder if compression else streaming_decoder(models.vae)
    warm_up(decoder, [done.latents for done in known])
    found, cuts = {done.block: done for done in known}, script.cuts
    events = rollout(
        models.model, script, build_cache(models.model, recipe), recipe.noise(), denoising, BEFORE + AFTER,
        found.get, compression, stop=end, decoded_from=len(known),
    )  # fmt: skip
    for event in events:
        if isinstance(event, BlockDone):
            video = found[event.block].video if event.block in found else event.video
            yield replace(
                event, video=push_block(decoder, event.latents, event.block in cuts) if video is None else video
            )


def _text(prompt: str) -> torch.Tensor:
    return _models().encode([prompt])[0]


def _distance(colour: str, before: Sequence[BlockDone], frames: Sequence[np.ndarray]) -> float | None:
    """Pixels between the thing of that colour in the last frame before the change and the first behind it."""
    if not before:
        return None
    pair = [list(to_frames(before[0].video))[-1], frames[0]]
    found = [thing for seen in read_video(pair) for thing in seen.things if thing.colour == colour]
    return hypot(found[0].x - found[1].x, found[0].y - found[1].y) if len(found) == 2 else None  # Seen once in each.


def table(rows: Sequence[dict]) -> str:
    """Markdown, a line per shot and change: of how many videos each holds."""
    lines = ["| shot | change | right within two blocks | new background from the first frame on, in the second block, "
             "in the third | old object seen in the first block, later | old background | object where it was |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for shot, change in dict.fromkeys((row["shot"], row["change"]) for row in rows):
        videos = [row for row in rows if (row["shot"], row["change"]) == (shot, change)]
        count = len(videos)
        right = share_interval(sum(row["right_within_two_blocks"] >= 0.9 for row in videos), count)
        new = [sum(min(row["new_background"][n : n + 1] or [0]) == 1 for row in videos) for n in range(3)]
        old = [[sum(max(row[key][part]) > 0 for row in videos) for part in (slice(1), slice(1, None))]
               for key in ("old_object", "old_background")]  # fmt: skip
        near = sum(row["moved"] is not None and row["moved"] <= 4 for row in videos)
        lines.append(
            f"| {shot} | {change} "
            f"| {right.mean * count:.0f} of {count} [{100 * right.low:.0f}, {100 * right.high:.0f}] "
            f"| {', '.join(map(str, new))} | {', '.join(map(str, old[0]))} | {', '.join(map(str, old[1]))} | {near} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs=2, default=(1000, 1012), help="the first, and the one behind")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=CHANGES)
    parser.add_argument("--shots", nargs="+", choices=("new", "same"), default=("new", "same"))
    parser.add_argument("--policy", default="packforcing")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "changes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    there = {(row["seed"], row["change"], row["shot"], row["policy"]) for row in rows}
    wanted = [
        (seed, change, shot, options.policy)
        for seed in range(*options.seeds)
        for shot in options.shots
        for change in options.changes
    ]
    with torch.inference_mode(), file.open("a") as lines:
        for case in wanted:
            if case not in there:
                rows.append(measured(*case))
                lines.write(json.dumps(rows[-1]) + "\n")
                lines.flush()
    print(table([row for row in rows if row["policy"] == options.policy]))


if __name__ == "__main__":
    main()
