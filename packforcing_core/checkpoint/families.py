"""The families of autoregressive Wan checkpoints: how each is sampled, and what its files look like.

`recognition.py` finds the family of a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import PackForcingError

FOUR_STEPS = (1000.0, 750.0, 500.0, 250.0)
FIVE_STEPS = (1000.0, 800.0, 600.0, 400.0, 200.0)
SIXTEEN_STEPS = tuple(62.5 * step for step in range(16, 0, -1))


def _check_steps(name: str, field: str, steps: tuple[float, ...]) -> None:
    falling = all(a > b for a, b in pairwise(steps))
    # Written so that nan, which compares false with everything, is refused too.
    if not steps or not falling or not all(1 <= step <= 1000 for step in steps):
        raise PackForcingError(
            f"Got {field} {list(steps)} ({name}); expected falling numbers from 1000 to 1, "
            "for example 1000, 750, 500, 250."
        )


@dataclass(frozen=True)
class Family:
    """A preset: how checkpoints of one family are sampled, and what their files look like.

    `denoising_steps` are on the 1000-step training grid; with `warp` they are shifted, otherwise they are the timesteps
    themselves. `first_block_steps`, if set, replaces them for block 0. `window_frames` and `sink_frames` are in latent
    frames; the window includes sink and current block, and is None for full history. `attended_frames` is set if
    upstream's buffer of `window_frames` is larger than what one pass attends to. `rollout` is "block" (one block after
    the other) or "rolling" (a window of blocks, each at its own noise level). `only_size`, if set, is the one video
    size that works, (width, height) in pixels. `patterns` are regular expressions for the lower-case "folder/file".
    `generic_files` are whole file names that count only together with one of `top_keys` ("" is a file without
    top-level keys). `own_keys` are regular expressions for tensor names that no other family has.
    """

    name: str
    title: str
    patterns: tuple[str, ...] = ()
    generic_files: tuple[str, ...] = ()
    top_keys: tuple[str, ...] = ("generator_ema",)
    own_keys: tuple[str, ...] = ()
    frames_per_block: int = 3
    denoising_steps: tuple[float, ...] = FOUR_STEPS
    first_block_steps: tuple[float, ...] | None = None
    warp: bool = True
    shift: float = 5.0
    context_noise: float = 0.0
    window_frames: int | None = 21
    attended_frames: int | None = None
    sink_frames: int = 0
    autoregressive: bool = True
    rollout: str = "block"
    only_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_steps(self.name, "denoising_steps", self.denoising_steps)
        if self.first_block_steps is not None:
            _check_steps(self.name, "first_block_steps", self.first_block_steps)
        if self.frames_per_block < 1:
            raise PackForcingError(f"Got frames_per_block {self.frames_per_block}; expected 1 or more.")
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise PackForcingError(f"Got shift {self.shift:g}; expected a finite number above 0 (5 is usual).")
        if not 0 <= self.context_noise < 1000:
            raise PackForcingError(
                f"Got context_noise {self.context_noise:g}; expected a timestep, at least 0 and below 1000."
            )
        window = self.window_frames
        if self.sink_frames < 0 or (window is not None and self.sink_frames >= window):
            raise PackForcingError(
                f"Got {self.sink_frames} sink frames in a window of {window}; "
                "expected at least 0 and fewer than the window holds."
            )

    @property
    def sampling(self) -> str:
        """One line for people: block length, steps (and how many more a scene's first block takes), shift, window and
        sink.
        """
        steps = ", ".join(f"{step:g}" for step in self.denoising_steps)
        if self.first_block_steps:
            steps += f" ({len(self.first_block_steps)} steps in a scene's first block)"
        window = "full history" if self.window_frames is None else f"window {self.window_frames}"
        way = ", as a rolling window" if self.rollout == "rolling" else ""
        return (
            f"blocks of {self.frames_per_block}, steps {steps}{'' if self.warp else ' (not warped)'}, "
            f"shift {self.shift:g}, {window}, sink {self.sink_frames}{way}"
        )


_TABLE = (
    Family("self-forcing", "Self-Forcing", patterns=(r"self[-_ ]?forcing(_dmd|_sid)?",)),
    Family(
        "causal-forcing-chunkwise",
        "Causal-Forcing, chunk-wise",
        patterns=(
            r"causal[-_ ]?forcing",
            r"chunk[-_]?wise/causal[-_ ]?forcing",
            r"causal[-_ ]?forcing[-_]chunk[-_]?wise",
        ),
        top_keys=("generator",),
    ),
    Family(
        "causal-forcing-framewise",
        "Causal-Forcing, frame-wise",
        patterns=(
            r"causal[-_ ]?forcing",
            r"frame[-_]?wise/causal[-_ ]?forcing",
            r"causal[-_ ]?forcing[-_]frame[-_]?wise",
        ),
        frames_per_block=1,
    ),
    Family(
        "causal-forcing-2step",
        "Causal-Forcing++, two steps",
        patterns=(r"(causal[-_ ]?forcing.*)?frame[-_]?wise[-_]2[-_]?step",),
        frames_per_block=1,
        denoising_steps=(1000.0, 500.0),
        first_block_steps=FOUR_STEPS,
    ),
    Family(
        "causal-forcing-1step",
        "Causal-Forcing++, one step",
        patterns=(r"(causal[-_ ]?forcing.*)?frame[-_]?wise[-_]1[-_]?step",),
        frames_per_block=1,
        denoising_steps=(1000.0,),
        first_block_steps=FOUR_STEPS,
    ),
    Family(
        "causal-forcing-long",
        "Causal-Forcing, long video",
        patterns=(
            r"chunk[-_]?wise/long[-_]?video",
            r"causal[-_ ]?forcing/long[-_]?video",
            r"causal[-_ ]?forcing[^/]*long(?![-_ ]?live)([-_]?video)?",
        ),
        window_frames=24,
        attended_frames=21,
        sink_frames=3,
        rollout="rolling",
    ),
    Family(
        "rolling-forcing",
        "Rolling Forcing",
        patterns=(r"rolling[-_ ]?forcing(_dmd)?",),
        denoising_steps=FIVE_STEPS,
        window_frames=24,
        attended_frames=21,
        sink_frames=3,
        rollout="rolling",
    ),
    Family(
        "longlive",
        "LongLive 1.0",
        patterns=(r"long[-_ ]?live(_base)?",),
        top_keys=("generator",),
        window_frames=12,
        sink_frames=3,
        notes=("The base file is meant to be used with its lora.pt.",),
    ),
    Family(
        "memflow",
        "MemFlow",
        patterns=(r"mem[-_ ]?flow(/base)?",),
        generic_files=("base.pt",),
        top_keys=("generator",),
        window_frames=12,
        sink_frames=3,
        notes=("The base file is meant to be used with its lora.pt.",),
    ),
    Family(
        "reward-forcing",
        "Reward-Forcing",
        patterns=(r"reward[-_ ]?forcing",),
        top_keys=("",),
        window_frames=9,
        sink_frames=3,
    ),
    Family(
        "krea-realtime",
        "Krea Realtime 14B",
        patterns=(r"krea[-_ ]?realtime([-_]?video)?",),
        top_keys=("",),
        window_frames=6,
        notes=("Upstream recomputes the K and V of its window for every block; a plain window cache does not.",),
    ),
    Family(
        "causvid",
        "CausVid",
        patterns=(r"causvid", r"autoregressive_checkpoint/model\.pt"),
        generic_files=("model.pt",),
        top_keys=("model", "generator"),
        denoising_steps=(1000.0, 757.0, 522.0),
        warp=False,
        shift=8.0,
        window_frames=None,
        notes=("Shift 8 and the top-level key of this family are unverified.",),
    ),
    Family(
        "minwm",
        "minWM",
        patterns=(r"min[-_ ]?wm", r"action2v/\w+/model\.pt"),
        generic_files=("model.pt",),
        top_keys=("generator_ema", "generator"),
        own_keys=(r"\.self_attn\.prope_o\.",),
        frames_per_block=4,
        window_frames=20,
    ),
    Family(
        "raven",
        "RAVEN",
        patterns=(r"(cmgrpo[-_ ]?)?raven([-_ ](model|merge))?",),
        top_keys=("",),
    ),
    Family(
        "one-forcing",
        "One-Forcing",
        patterns=(r"one[-_ ]?forcing",),
        frames_per_block=1,
        denoising_steps=(1000.0,),
    ),
    Family(
        "wave-forcing",
        "WaveForcing",
        patterns=(r"wave[-_ ]?forcing",),
        top_keys=("",),
        denoising_steps=FIVE_STEPS,
        window_frames=24,
        attended_frames=21,
        sink_frames=3,
        rollout="rolling",
        notes=("Its window and sink are assumed to be Rolling Forcing's.",),
    ),
    Family(
        "streamdiffusion-v2",
        "StreamDiffusionV2",
        patterns=(r"stream[-_ ]?diffusion[-_ ]?v2", r"wan_causal_dmd(_v2v)?"),
        generic_files=("model.pt",),
        top_keys=("generator", "model"),
        frames_per_block=1,
        denoising_steps=(700.0, 500.0, 400.0, 200.0),
        warp=False,
        shift=8.0,
        window_frames=6,
        sink_frames=3,
        notes=("Made for video to video: its first step is 700, so it expects a video to start from.",),
    ),
    Family(
        "livewan",
        "LiveWan",
        patterns=(r"live[-_ ]?wan", r"step\d{6}_noema"),
        top_keys=("", "generator"),
        notes=("Trained at 640x368. Its schedule is not published: the steps and blocks are Self-Forcing's.",),
    ),
    Family(
        "comfyui-causal",
        "Causal-Forcing frame-wise, repacked for ComfyUI",
        patterns=(r"causal[-_ ]?forcing[-_]frame[-_]?wise\.safetensors",),
        top_keys=("",),
        frames_per_block=1,
        window_frames=None,
    ),
    Family(
        "packforcing-partial",
        "an independent partial PackForcing",
        own_keys=(r"(^|\.)pack_compressor\.",),
        notes=("Its compressor keys (pack_compressor) are not loaded: they are another project's compressor.",),
    ),
    Family(
        "miniature",
        "the PackForcing miniature",
        patterns=(r"packforcing[-_ ]?miniature", r"weights/wan\.safetensors"),
        top_keys=("",),
        frames_per_block=4,
        # The first block must decide everything that the prompt leaves open.
        first_block_steps=SIXTEEN_STEPS,
        window_frames=20,
        only_size=(128, 64),
        notes=("It knows only the toy world, at 128x64 pixels; its text encoder has a small vocabulary.",),
    ),
    Family(
        "wan2.1-t2v",
        "the original Wan2.1 T2V",
        patterns=(r"wan[-_ ]?2[._]1[-_](t2v|.*text[-_]to[-_]video)",),
        top_keys=("",),
        window_frames=None,
        autoregressive=False,
        notes=("Bidirectional: it was trained to see the whole clip at once.",),
    ),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _TABLE}

# The preset for unrecognised files: most autoregressive Wan models descend from Self-Forcing.
DEFAULT_FAMILY = FAMILIES["self-forcing"]


def by_name(name: str) -> Family:
    """The preset called `name`. Raises PackForcingError that lists all presets for an unknown name."""
    if name not in FAMILIES:
        raise PackForcingError(f"Got preset {name!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def with_overrides(
    family: Family,
    *,
    frames_per_block: int | None = None,
    denoising_steps: tuple[float, ...] | None = None,
    first_block_steps: tuple[float, ...] | None = None,
    warp: bool | None = None,
    shift: float | None = None,
    context_noise: float | None = None,
    window_frames: int | None = None,
    sink_frames: int | None = None,
) -> Family:
    """The preset with the user's values; None keeps the preset's. Raises PackForcingError for an invalid value."""
    chosen = {name: value for name, value in locals().items() if name != "family" and value is not None}
    for name in ("denoising_steps", "first_block_steps"):
        if name in chosen:
            chosen[name] = tuple(float(step) for step in chosen[name])
    return replace(family, **chosen)


def any_size(trained: Family | None) -> bool:
    """Whether a model of this family can render other sizes than one; True where it is not known."""
    return trained is None or trained.only_size is None


def choice_warnings(trained: Family | None, chosen: Family, size: tuple[int, int]) -> list[str]:
    """Warnings for a choice that differs from how the file was trained. `size` is (width, height) in pixels."""
    warnings = []
    if trained is not None and chosen.frames_per_block != trained.frames_per_block:
        warnings.append(
            f"{trained.title} was trained with blocks of {trained.frames_per_block} latent frames, but "
            f"frames_per_block is {chosen.frames_per_block}: expect worse motion than with {trained.frames_per_block}."
        )
    if trained is not None and chosen.rollout != trained.rollout:
        ways = {"block": "block by block", "rolling": "as a rolling window of blocks"}
        warnings.append(
            f"{trained.title} was trained to be sampled {ways[trained.rollout]}, but {chosen.title} samples "
            f"{ways[chosen.rollout]}: expect a worse image."
        )
    if trained is not None and trained.only_size not in (None, size):
        (width, height), (w, h) = trained.only_size, size
        warnings.append(
            f"{trained.title} was trained at {width}x{height} pixels only, but the size is {w}x{h}: expect a worse "
            f"video. Set width to {width} and height to {height}."
        )
    return warnings
