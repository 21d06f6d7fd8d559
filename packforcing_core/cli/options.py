"""Options that several subcommands share: the size of the video, the cache policy, the sampling preset."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from ..cache.config import POLICIES
from ..cache.policy import Knob
from ..checkpoint.families import FAMILIES
from ..errors import PackForcingError
from ..folder.folder import MODES
from ..recipe.settings import Settings
from ..render.output import checked_output
from ..render.render import Place
from ..video.format import CODECS, VideoFormat

SEED_HELP = "the same seed gives the same video, whatever its length"
_FILE_NAME = re.compile(r"\S+\.(txt|md|json)", re.IGNORECASE)


def add_size(parser: argparse.ArgumentParser, *, width: int, height: int, seconds: float) -> None:
    size = parser.add_argument_group("size")
    size.add_argument("--width", type=int, default=width, help="pixels, a multiple of 16")
    size.add_argument("--height", type=int, default=height, help="pixels, a multiple of 16")
    size.add_argument("--seconds", type=float, default=seconds, help="length; rounded to whole blocks")
    size.add_argument("--frames", type=int, help="length in frames, instead of --seconds")
    size.add_argument("--fps", type=float, default=16.0, help="frames per second; Wan was trained at 16")


def add_prompt(group: argparse._MutuallyExclusiveGroup, help: str, default: str | None = None) -> None:
    """`--prompt`, and `--prompt-file` that reads it from a file."""
    group.add_argument("--prompt", type=_parse_prompt, default=default, help=help)
    group.add_argument(
        "--prompt-file",
        metavar="FILE",
        dest="prompt",
        type=_read_prompt,
        default=argparse.SUPPRESS,
        help="a text file (UTF-8) with the prompt, or with prompts and their times",
    )


def _parse_prompt(text: str) -> str:
    if _FILE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected the prompt itself; for the text in a file: --prompt-file {text}")
    return text


def _read_prompt(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{file} cannot be read: {error}") from error


def add_policy(parser: argparse.ArgumentParser) -> None:
    """`--policy` and one option per knob of every policy. A knob that the chosen policy lacks is an error."""
    memory = parser.add_argument_group("KV cache policy", "which past frames a block attends to; -1 means automatic")
    titles = " ".join(f"{name} ({policy.title}): {policy.keeps}." for name, policy in POLICIES.items())
    memory.add_argument(
        "--policy",
        choices=("auto", *POLICIES),
        default="auto",
        help=f"auto: what the preset was trained with. {titles}",
    )
    for name, knobs in _knobs().items():
        memory.add_argument(
            f"--{name.replace('_', '-')}",
            type=_kind(next(iter(knobs.values()))),
            default=argparse.SUPPRESS,
            help=" ".join(_knob_help(knobs)),
        )


def _knobs() -> dict[str, dict[str, Knob]]:
    """Maps each knob to the policies that have it."""
    found: dict[str, dict[str, Knob]] = {}
    for policy in POLICIES.values():
        for knob in policy.knobs():
            found.setdefault(knob.name, {})[policy.name] = knob
    return found


def _kind(knob: Knob):
    return _parse_switch if isinstance(knob.default, bool) else type(knob.default)


def _knob_help(knobs: Mapping[str, Knob]) -> Iterator[str]:
    """Help text of a knob with its choices and defaults, listed per policy where they differ."""
    texts: dict[str, list[str]] = {}
    for policy, knob in knobs.items():
        texts.setdefault(f"{knob.help} Default: {_shown(knob.default)}.", []).append(policy)
    for text, policies in texts.items():
        yield (f"[{', '.join(policies)}] " if len(texts) > 1 else "") + text.replace("%", "%%")
    choices = dict.fromkeys(choice for knob in knobs.values() for choice in knob.choices)
    if choices:
        yield f"One of {', '.join(choices)}."


def _shown(default: float | bool | str) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _parse_switch(text: str) -> bool:
    if text.lower() in ("on", "true", "yes", "1"):
        return True
    if text.lower() in ("off", "false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected on or off, got {text!r}")


def chosen_settings(options: argparse.Namespace, **changes: object) -> Settings:
    """The settings from the options; "auto" on the command line becomes None."""
    auto = {name: None if getattr(options, name) == "auto" else getattr(options, name) for name in ("policy", "preset")}
    own = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    given = {**own, **auto, "knobs": given_knobs(options), **changes}
    return Settings(**{name: value for name, value in given.items() if name != "prompt" or value is not None})


def given_knobs(options: argparse.Namespace) -> dict[str, int | bool]:
    return {name: getattr(options, name) for name in _knobs() if hasattr(options, name)}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--preset",
        choices=("auto", *FAMILIES),
        default="auto",
        help="how the checkpoint was trained; auto: by its file",
    )
    sampling.add_argument("--frames-per-block", type=int, help="latent frames per block; default: the preset's")
    sampling.add_argument(
        "--timesteps",
        type=_parse_steps,
        help="from noise (1000) to clean, one forward pass each, for example 1000,750,500,250; default: the preset's",
    )
    sampling.add_argument("--shift", type=float, help="time shift of the schedule; default: the preset's")
    sampling.add_argument("--seed", type=int, default=0, help=SEED_HELP)


def _parse_steps(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(step) for step in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from error


def add_output(parser: argparse.ArgumentParser, default: str, zoom: int = 1) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", default=default, help="the video to write (.mp4); a name that is taken gets a number"
    )
    codecs = "; ".join(f"{name}: {codec.about}" for name, codec in CODECS.items())
    output.add_argument("--codec", choices=tuple(CODECS), default="h264", help=codecs)
    output.add_argument("--quality", type=int, help="constant rate factor, lower is better; default: the codec's")
    output.add_argument("--zoom", type=int, default=zoom, help="scale the video by this factor, for tiny videos")
    output.add_argument(
        "--blocks-per-segment",
        type=int,
        default=4,
        help="blocks per file segment; a crash loses at most one",
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_argument_group(
        "resuming", "run the same command again: it resumes where it stopped, after any crash"
    )
    folder.add_argument(
        "--folder",
        help="the render's folder, which holds everything needed to resume, extend and retake; default: one beside "
        "the video, found by its settings and removed when the video is finished",
    )
    folder.add_argument(
        "--render-mode",
        choices=MODES,
        default="resume",
        help="resume: continue, or start; new: start over, the existing render is renamed to NAME.1; extend: make it "
        "--seconds long; retake: keep what comes before --retake-from, render the rest again with this seed and prompt",
    )
    folder.add_argument(
        "--retake-from", type=float, default=0.0, help="seconds: the moment that --render-mode retake goes back to"
    )


def chosen_place(options: argparse.Namespace) -> Place:
    """The render's folder and output file. Raises PackForcingError if they contradict the render mode."""
    if options.folder is None and options.render_mode in ("extend", "retake"):
        raise PackForcingError(f"--render-mode {options.render_mode} needs --folder, the folder of the render.")
    return Place(
        checked_output(Path(options.output)),
        VideoFormat(options.codec, options.quality, options.fps, options.zoom),
        options.blocks_per_segment,
        Path(options.folder) if options.folder else None,
        options.render_mode,
        options.retake_from,
    )
