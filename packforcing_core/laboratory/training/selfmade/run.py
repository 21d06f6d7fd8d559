"""Trains a compressor for a checkpoint: plan, clips, training, held-out score, export. A run resumes
where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ....checkpoint.build import build_model
from ....checkpoint.families import FAMILIES
from ....checkpoint.load import Checkpoint, read_checkpoint
from ....compressor.high_res import Fusion, build_high_res
from ....errors import PackForcingError
from ....folder.fingerprint import fingerprint
from ....geometry import GB
from ....miniature.load import fast_dtype, load_text
from ....text.umt5 import encode_prompts
from ....vae.load import load_vae
from ..attention import training_attention
from ..learner import COMPRESSOR_EPS, Optimisation
from ..loop import Training
from ..setup import CPU
from ..wan import TrainedWan
from . import card
from .base import Base, read_base, require_vae
from .clip_prompts import miniature_prompts, read_prompts, shipped_prompts
from .clips import Clips
from .plan import SelfmadePlan, Ways, plan_run, require_disk, require_vram
from .score import Examiner, Score, Scores, plot
from .stage import SelfmadeStage
from .state import State
from .texts import Texts, encoded_texts

Tell = Callable[[str], None]
CLIPS, HELD = 400, 16
"""Number of clips to generate, and how many of them are held out for the score."""
LEAST_CLIPS = HELD + 8
CLIPS_SHARE = 1 / 3
"""Maximum share of the time budget for generating clips, once there are LEAST_CLIPS."""
SAVE_SECONDS = 600.0
RESERVE = int(0.7 * GB)
"""Bytes of GPU memory left for the driver and for the allocator's fragmentation."""


@dataclass(frozen=True)
class Course:
    """Training settings. The learning rate is constant after the warm-up, so training can stop at any step; the
    averaged weights (EMA) are exported.
    """

    optimisation: Optimisation
    batch: int
    at_once: int
    score_every: int


WAN = Course(Optimisation(1e-4, warmup=50, final_rate=1.0, eps=COMPRESSOR_EPS, average=0.99), 4, 1, 100)
MINIATURE = Course(Optimisation(1e-3, warmup=30, final_rate=1.0, eps=COMPRESSOR_EPS, average=0.98), 8, 8, 50)


@dataclass(frozen=True)
class Order:
    """The command's options. `text_encoder` is a umT5 folder, or the miniature's text.safetensors."""

    checkpoint: Path
    vae: Path
    text_encoder: Path
    folder: Path
    hours: float
    prompts: Path | None = None
    preset: str | None = None
    size: tuple[int, int] | None = None
    clip_frames: int | None = None
    clips: int = CLIPS
    seed: int = 0
    device: torch.device = CPU
    licence: str = card.LICENCE
    kv_int8: bool = False
    levels: int = 2
    recompute: bool = True
    fusion: Fusion = "add"
    steps: float = math.inf
    batch: int | None = None
    score_every: int | None = None
    vram: int | None = None

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise PackForcingError(f"Got --hours {self.hours:g}; expected more than 0.")
        if self.clips < LEAST_CLIPS:
            raise PackForcingError(
                f"Got --clips {self.clips}; expected {LEAST_CLIPS} or more, of which {HELD} are held out."
            )

    def base(self) -> Base:
        return read_base(self.checkpoint, self.preset, self.size, self.clip_frames, self.kv_int8)


@dataclass(frozen=True)
class Job:
    """The options with everything that is derived from them before a model is loaded."""

    order: Order
    base: Base
    course: Course
    prompts: list[str]
    dtype: torch.dtype

    @property
    def small(self) -> bool:
        return is_miniature(self.base)

    @property
    def ways(self) -> Ways:
        kept = self.small or not self.order.recompute
        return Ways(self.course.at_once, self.order.levels, not kept, self.order.fusion)

    def plan(self) -> SelfmadePlan:
        sizes, order = require_vae(self.order.vae), self.order
        optimisation = self.course.optimisation
        amounts = order.clips, len(self.prompts)
        return plan_run(self.base, sizes, optimisation, self.dtype, self.ways, *amounts, order.device)

    def state(self) -> State:
        order = self.order
        asked = {
            "checkpoint": f"{order.checkpoint.name}, {order.checkpoint.stat().st_size} bytes",
            "preset": self.base.family.name,
            "VAE": f"{order.vae.name}, {order.vae.stat().st_size} bytes",
            "clips of": self.base.clip.describe(),
            "memory of clips": str(self.base.memory),
            "prompts": fingerprint(self.prompts),
            "seed": str(order.seed),
            "fusion": order.fusion,
            "batch": f"{self.course.batch} of {order.levels} levels",
        }
        return State.read(order.folder / "state.json", asked)


def is_miniature(base: Base) -> bool:
    return base.family is FAMILIES["miniature"]


def prepared(order: Order) -> Job:
    """Returns the job of an order. Raises PackForcingError for every problem that can be found from the options and the
    files' headers, before any weights are loaded.
    """
    base = order.base()
    require_vae(order.vae)
    small = is_miniature(base)
    course = MINIATURE if small else WAN
    course = replace(course, batch=order.batch or course.batch, score_every=order.score_every or course.score_every)
    if order.prompts:
        prompts = read_prompts(order.prompts)
    else:
        prompts = miniature_prompts() if small else shipped_prompts()
    if not order.text_encoder.exists():
        raise PackForcingError(f"{order.text_encoder} does not exist; expected --text-encoder, a folder of umT5-XXL.")
    dtype = torch.bfloat16 if order.device.type != "cpu" else fast_dtype()
    return Job(order, base, replace(course, at_once=min(course.at_once, course.batch)), prompts, dtype)


def announced(job: Job, tell: Tell) -> SelfmadePlan:
    """Prints what will be done and what it needs. Raises PackForcingError if the memory or the disk space is not
    available.
    """
    order, base, plan = job.order, job.base, job.plan()
    tell(f"{base.title}; clips of {base.clip.describe()}, generated with the policy {base.memory.title}")
    tell(f"{len(job.prompts)} prompts, at most {order.clips} clips and {order.hours:g} hours; folder: {order.folder}")
    for line in plan.lines():
        tell(line)
    if order.device.type == "cpu" and torch.cuda.is_available():
        tell("Note: this runs on the CPU although there is a GPU; use --device cuda.")
    require_disk(order.folder, plan.disk)
    available = order.vram or device_bytes(order.device)
    if available is not None:
        require_vram(plan, available - RESERVE, remedies(job))
    return plan


def device_bytes(device: torch.device) -> int | None:
    """Returns the total memory of a GPU in bytes; None for other devices, whose memory is not checked."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def remedies(job: Job) -> Iterator[tuple[str, SelfmadePlan]]:
    """Yields options that reduce the memory, each combined with those before it, and the plan that results."""
    order = job.order
    said: list[str] = []
    frames = job.base.clip.frames_per_block
    smaller: list[tuple[str, dict[str, Any]] | None] = [
        ("no --keep-layers", {"recompute": True}) if not order.recompute else None,
        ("--levels 1", {"levels": 1}) if order.levels > 1 else None,
        ("--kv-int8", {"kv_int8": True}) if not order.kv_int8 else None,
        (f"--clip-frames {max(5 * frames, 12)}", {"clip_frames": max(5 * frames, 12)}),
        ("--width 640 --height 352", {"size": (640, 352)}),
        ("--width 480 --height 272", {"size": (480, 272)}),
    ]
    for option, change in filter(None, smaller):
        order = replace(order, **change)
        said = (
            [*said, option] if not option.startswith("--width") else [*(s for s in said if "--width" not in s), option]
        )
        yield " ".join(said), replace(job, order=order, base=order.base()).plan()


def make_compressor(order: Order, tell: Tell = print) -> list[Path]:
    """Trains the compressor of an order, or resumes its training. Returns the paths of the compressor, the model card
    and the plot.
    """
    job = prepared(order)
    announced(job, tell)
    state = job.state()
    if state.clips is not None and state.hours >= order.hours:
        tell(f"{state.hours:.2f} hours are used; raise --hours to continue")
        return left(job)
    texts = encoded_texts(order.folder / "texts.safetensors", job.prompts, encoder(job))
    checkpoint = read_checkpoint(order.checkpoint)
    model = built(job, checkpoint, texts)
    clips = Clips(order.folder / "clips", job.base, job.prompts, order.seed)
    make_clips(job, state, clips, model, texts, tell)
    learn(job, state, clips, model, texts, checkpoint, tell)
    return left(job)


def left(job: Job) -> list[Path]:
    found = exported(job), exported(job).with_suffix(".md"), job.order.folder / "scores.png"
    return [path for path in found if path.exists()]


def exported(job: Job) -> Path:
    return job.order.folder / f"{job.base.path.stem}-compressor.safetensors"


def encoder(job: Job) -> Callable:
    """Returns a function from prompts to contexts: the miniature's vocabulary, or umT5, which is freed
    after the call.
    """
    order = job.order
    if order.text_encoder.is_file():
        return lambda prompts: load_text(order.text_encoder)(prompts).split(1)
    return partial(encode_prompts, folder=order.text_encoder, device=order.device, text_dim=job.base.config.text_dim)


def built(job: Job, checkpoint: Checkpoint, texts: Texts) -> TrainedWan:
    """Builds the frozen model."""
    device, config = job.order.device, replace(job.base.config, text_len=texts.text_len)
    net = build_model(checkpoint, device, job.dtype).net
    options = {"dtype": job.dtype, "device": device, "attention": training_attention(device)}
    return TrainedWan(net, config, recompute=job.ways.recompute, **options)


def make_clips(job: Job, state: State, clips: Clips, model: TrainedWan, texts: Texts, tell: Tell) -> None:
    """Generates clips until there are enough or their share of the time budget is used, and records their number in the
    state. A resumed run keeps that number.
    """
    if state.clips is not None:
        return
    order = job.order
    vae = load_vae(order.vae, device=order.device, dtype=job.dtype)
    for index in range(order.clips):
        if index >= LEAST_CLIPS and index % 2 == 0 and state.hours >= CLIPS_SHARE * order.hours:
            tell(f"{CLIPS_SHARE:.0%} of the hours are used; training on {index} clips")
            break
        if not clips.path(index).exists():
            began = time.monotonic()
            clips.make(index, model, vae, texts)
            state.write()
            tell(f"clip {index + 1} of {order.clips}: {time.monotonic() - began:.1f} s, {clips.prompt(index)}")
    else:
        index = order.clips
    state.clips = index
    state.write()


def learn(
    job: Job, state: State, clips: Clips, model: TrainedWan, texts: Texts, checkpoint: Checkpoint, tell: Tell
) -> None:
    """Trains until the time budget is used, all steps are done, or the held-out score has stopped falling."""
    order, course = job.order, job.course
    high_res = build_high_res(job.base.config.dim, order.seed, order.fusion).to(order.device)
    training_clips = range(HELD, state.clips_made)
    stage = SelfmadeStage(
        model,
        high_res,
        clips,
        texts,
        training_clips,
        course.optimisation,
        course.batch,
        course.at_once,
        order.levels,
    )
    training = Training(stage, order.steps, order.folder / "compressor", save_every=2**62)
    examiner, scores = Examiner(model, clips, texts, range(HELD)), Scores(order.folder / "scores.json")
    if not scores.references:
        scores.references = examiner.references()
        scores.write()
    keep = partial(_keep, job, state, training, examiner, scores, checkpoint, tell)
    if scores.after(training.done) is None:
        keep()
    saved = state.used
    with closing(training.run()) as steps:
        for _ in steps:
            over = state.hours >= order.hours
            if training.done % course.score_every == 0 or over:
                keep()
            elif state.used - saved < SAVE_SECONDS:
                continue
            else:
                training.save()
                state.write()
            saved = state.used
            if over or scores.settled:
                break
    if scores.after(training.done) is None:
        keep()
    why = "the score no longer falls" if scores.settled else f"{state.hours:.2f} of {order.hours:g} hours are used"
    tell(f"ended after {training.done} steps: {why}")


def _keep(
    job: Job, state: State, training: Training, examiner: Examiner, scores: Scores, checkpoint: Checkpoint, tell: Tell
) -> None:
    """Saves the training state, scores the averaged weights, and exports the compressor if this score is the best so
    far.
    """
    if training.done:
        training.save()
    branch = build_high_res(job.base.config.dim, fusion=job.order.fusion).to(job.order.device)
    branch.load_state_dict(training.learners["compressor"].averaged())
    errors = examiner.ask(branch.requires_grad_(False), job.base.asked)
    scores.add(Score(training.done, round(state.hours, 4), errors))
    if scores.best is scores.scores[-1]:
        order = job.order
        said = card.told(job.base, state.clips_made, order.seed, order.licence, scores)
        card.write(exported(job), branch.bfloat16(), checkpoint.state_dict, job.base, said, scores)
    plot(scores, job.order.folder / "scores.png")
    state.write()
    for line in scores.lines():
        tell(line)
