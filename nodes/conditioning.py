"""CONDITIONING with times -> the text of every block. Each entry carries the second of the video at which it starts."""

from __future__ import annotations

from typing import NamedTuple

from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.geometry import VideoGeometry
from ..packforcing_core.model.config import WanConfig
from ..packforcing_core.ranges import in_range
from ..packforcing_core.text.script import Change, Cue, Script
from ..packforcing_core.text.timeline import Snapped, block_seconds, describe, snap
from . import host

# Keys in the dictionary of a CONDITIONING entry.
FROM_SECOND, BLEND_SECONDS, RECACHE = "packforcing_from_second", "packforcing_blend_seconds", "packforcing_recache"
CHANGE = "packforcing_change"


class TimedScript(NamedTuple):
    """The text of every block, and the block-aligned times of the prompts."""

    script: Script
    moments: tuple[Snapped, ...]

    def describe(self, geometry: VideoGeometry) -> list[str]:
        """One line per prompt, if there are several: when and how it starts."""
        several = len(self.moments) > 1
        return describe(self.moments, geometry, self.script) if several else []


def from_second(conditioning, seconds: float, blend_seconds: float, recache: bool, change: Change = "") -> list:
    """Returns a CONDITIONING of one prompt that starts at `seconds`. Raises PackForcingError if it holds several."""
    if len(conditioning) != 1:
        raise PackForcingError(f"Got a CONDITIONING of {len(conditioning)} prompts for one moment; expected one.")
    in_range("blend_seconds", blend_seconds)
    embeddings, extra = conditioning[0]
    timed = {FROM_SECOND: seconds, BLEND_SECONDS: blend_seconds, RECACHE: recache, CHANGE: change}
    return [[embeddings, {**extra, **timed}]]


def after(earlier, later: list) -> list:
    """The prompts of `earlier`, then those of `later`. A single prompt without a time starts at 0 s. Raises
    PackForcingError for several prompts without times.
    """
    untimed = [number for number, (_, extra) in enumerate(earlier) if FROM_SECOND not in extra]
    if len(earlier) > 1 and untimed:
        raise PackForcingError(
            f"Got {len(earlier)} combined prompts before this one, of which some have no time; expected one, or "
            "several with a time each."
        )
    timed = from_second(earlier, 0.0, 0.0, False) if untimed else earlier
    return [*timed, *later]


def timed_script(conditioning, config: WanConfig, geometry: VideoGeometry, left_out_blocks: int) -> TimedScript:
    """One prompt for the whole video, or several, each moved to the block nearest to its time.

    Raises PackForcingError for prompts combined by another node, and for times that do not fit the video.
    """
    if len(conditioning) > 1 and any(FROM_SECOND not in extra for _, extra in conditioning):
        raise PackForcingError(
            f"Got a CONDITIONING of {len(conditioning)} combined prompts; expected one, or several with a time each. "
            "Encode the prompt in one node, or use PackForcing Timed Prompts or Timed Prompt (Chain)."
        )
    contexts = [host.text_context([entry], config) for entry in conditioning]
    moments = snap([extra.get(FROM_SECOND, 0.0) for _, extra in conditioning], geometry, left_out_blocks)
    length = block_seconds(geometry)
    cues = [
        Cue(
            *(moment.block, context, round(extra.get(BLEND_SECONDS, 0.0) / length)),
            *(extra.get(RECACHE, False), extra.get(CHANGE, "")),
        )
        for moment, context, (_, extra) in zip(moments, contexts, conditioning, strict=True)
    ]
    return TimedScript(Script(tuple(cues)), moments)
