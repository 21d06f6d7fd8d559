"""Prompts that change over time, as text:

    A paper boat, watercolour.          before the first time: put in front of every prompt
    [0s] It drifts on a pond.
    [12.5s] Rain begins to fall.
    [1m05s] It lies on the bank, the sun is out.
    [1m20s cut] A harbour at night.     a hard cut; `flush` instead forgets all but sink and newest block

Times may also be in full-width or round brackets, at the start of lines (0:05 a sea), or the keys of a JSON map: see
`marks`. Text without times is one prompt for the whole video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import PackForcingError
from ..geometry import PIXEL_FRAMES_PER_LATENT, VideoGeometry, block_count, pixel_frames
from .marks import EXPECTED_TIME, TIME, find_entries, narrow
from .script import CHANGES, NOTHING, Change, Script

MOST_PROMPTS = 1000
# umT5 reads 512 tokens, about 2,500 characters of English; the rest is cut off.
LONGEST_PROMPT = 20_000
LONGEST_TEXT = 2_000_000
LATEST_SECONDS = 1e6
HOW: dict[Change, str] = {"": "", "cut": " (hard cut)", "flush": " (flush)"}


@dataclass(frozen=True)
class TimedPrompt:
    """`prompt` is used from second `seconds` of the video on; `change` says how it starts (`script.Change`)."""

    seconds: float
    prompt: str
    change: Change = ""


@dataclass(frozen=True)
class Snapped:
    """A requested time and the nearest block; `seconds` is when that block's first frame is shown."""

    wished: float
    block: int
    seconds: float


def parse_timeline(text: str, prefix: str = "") -> tuple[TimedPrompt, ...]:
    """The prompts of a timeline in order of time, the first at 0 s, each after `prefix` and the text before the first
    time.

    Raises PackForcingError for times that cannot be read or do not rise, a first time other than 0, an empty prompt,
    and text that is too long.
    """
    if len(text) + len(prefix) > LONGEST_TEXT:
        raise PackForcingError(f"Got a timeline of {len(text) + len(prefix):,} characters; expected a few thousand.")
    head, entries = find_entries(text)
    if not entries:
        return (_prompt(0.0, [prefix, text]),)
    if len(entries) > MOST_PROMPTS:
        raise PackForcingError(f"Got {len(entries):,} timed prompts; expected at most {MOST_PROMPTS:,}.")
    prompts = []
    for entry in entries:
        mark, change = _split_change(entry.mark)
        made = _prompt(parse_time(mark), [prefix, head, entry.text], own=entry.text)
        prompts.append(replace(made, change=change))
    require_rising([prompt.seconds for prompt in prompts])
    if prompts[0].change:
        raise PackForcingError(f"The first prompt has a {prompts[0].change}, but nothing comes before it. Write [0s].")
    return tuple(prompts)


def _split_change(mark: str) -> tuple[str, Change]:
    """(time, change) of a mark such as "20s cut"; without a change, (mark, none)."""
    found = re.fullmatch(r"(.*\S)\s+(cut|flush)\s*", narrow(mark), re.IGNORECASE)
    if not found:
        return mark, NOTHING
    return found[1], next(change for change in CHANGES if change == found[2].lower())


def parse_time(text: str) -> float:
    """Seconds in "12.5s", "1m05s", "2m", "1:05" or "1:00:05". Raises PackForcingError for anything else."""
    text = narrow(text).strip()
    found = TIME.fullmatch(text)
    if not text or not found:
        raise PackForcingError(f"Got the time [{text}]; {EXPECTED_TIME}.")
    minutes = 60 * int(found["hours"] or 0) + int(found["minutes"] or found["clock_minutes"] or 0)
    return 60 * minutes + float(found["seconds"] or found["clock_seconds"] or 0)


def require_rising(times: Sequence[float]) -> None:
    """Raises PackForcingError unless `times` start at 0 s and rise."""
    for seconds in times:
        if not (math.isfinite(seconds) and 0 <= seconds <= LATEST_SECONDS):
            raise PackForcingError(f"A prompt begins at {seconds:g} s; expected a time from 0 to {LATEST_SECONDS:g} s.")
    if times[0] != 0:
        raise PackForcingError(f"The first prompt begins at {times[0]:g} s; expected the first at [0s].")
    for before, after in pairwise(times):
        if after <= before:
            raise PackForcingError(
                f"A prompt at {after:g} s follows one at {before:g} s; expected rising times. Sort the prompts by "
                "time, one per time."
            )


def snap(times: Sequence[float], geometry: VideoGeometry, left_out_blocks: int = 0) -> tuple[Snapped, ...]:
    """Moves each time (rising, the first 0) to the block whose first frame is nearest; the first to the very first
    block.

    Times count from the video's first frame, which is that of block `left_out_blocks`. The result does not depend on
    the video's length; a time may be after its end. Raises PackForcingError if two times fall on one block.
    """
    require_rising(times)
    snapped = [Snapped(0.0, 0, 0.0)]
    for wished in times[1:]:
        near = int(wished / block_seconds(geometry)) + left_out_blocks
        starts = {block: block_starts(block, geometry, left_out_blocks) for block in (near, near + 1)}
        block = min(starts, key=lambda block: abs(starts[block] - wished))
        if block <= max(snapped[-1].block, left_out_blocks):
            raise PackForcingError(
                f"The prompts at {snapped[-1].wished:g} s and {wished:g} s fall on the same block, and a block has one "
                f"prompt. Set them at least {block_seconds(geometry):.2f} s apart, the length of a block."
            )
        snapped.append(Snapped(wished, block, starts[block]))
    return tuple(snapped)


def block_seconds(geometry: VideoGeometry) -> float:
    """Length of a block; the first block of a video is shorter."""
    return PIXEL_FRAMES_PER_LATENT * geometry.frames_per_block / geometry.fps


def block_starts(block: int, geometry: VideoGeometry, left_out_blocks: int = 0) -> float:
    """Seconds of the video at which `block` (not before `left_out_blocks`) starts."""
    before = pixel_frames(block * geometry.frames_per_block) - pixel_frames(left_out_blocks * geometry.frames_per_block)
    return before / geometry.fps


def describe(
    snapped: Sequence[Snapped], geometry: VideoGeometry, script: Script, prompts: Sequence[str] = ()
) -> list[str]:
    """One line per prompt of `script`: its requested time, its actual time, its block counted from 1, and how it
    starts; or a warning if that is after the end of the video.
    """
    lines = []
    for number, moment in enumerate(snapped):
        said = f": {_short(prompts[number])}" if number < len(prompts) else ""
        if moment.block >= geometry.blocks:
            end = moment.seconds - (moment.block - geometry.blocks) * block_seconds(geometry)
            lines.append(
                f"Warning: prompt {number + 1} at {moment.wished:g} s is never shown: it would start at "
                f"{moment.seconds:.2f} s, and the video ends at {end:.2f} s" + said
            )
            continue
        how, blend = HOW[script.cues[number].change], script.blend_blocks(number)
        if blend:
            how += f", blended over {block_count(blend)} ({blend * block_seconds(geometry):.3g} s)"
        block = f"block {moment.block + 1}"
        lines.append(f"prompt {number + 1} at {moment.wished:g} s starts at {moment.seconds:.2f} s, {block}{how}{said}")
    return lines


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else f"{prompt[:57]}..."


def _prompt(seconds: float, parts: Sequence[str], own: str | None = None) -> TimedPrompt:
    prompt = " ".join(part.strip() for part in parts if part.strip())
    if own is not None and not own.strip():
        raise PackForcingError(f"The prompt at {seconds:g} s is empty. Write what the video shows after the time.")
    if len(prompt) > LONGEST_PROMPT:
        raise PackForcingError(
            f"The prompt at {seconds:g} s has {len(prompt):,} characters; expected at most {LONGEST_PROMPT:,} (the "
            "text encoder reads about 2,500)."
        )
    return TimedPrompt(seconds, prompt)
