"""The stages of `packforcing train`: builds the job of each from a size, a folder and given files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.families import DEFAULT_FAMILY
from ...errors import PackForcingError
from ...sampler.denoising import Denoising
from ...vae.wan_vae import WanVAE
from .compressor import CompressorStage, TwinsStage
from .distillation import DistillationStage
from .dmd import DMDStage
from .export import exporter, write_weights
from .flow import MEMORIES, CausalStage, NoiseLevels, TeacherStage
from .initial import (
    COMPRESSORS_BEFORE,
    build_branch,
    build_critic,
    build_frozen_wan,
    build_wan,
    compressor_before,
    load_training_vae,
    model_before,
    require_model_before,
    require_teacher,
)
from .layouts import HiddenClips, JointLayoutStage, LayoutStage, blank_films
from .learner import Optimisation
from .loop import Training
from .self_forcing import SelfForcing
from .setup import Job, Setup
from .vae import MINIATURE_PHASES, Phase, VAEStage, calibrate, fused_norm_silu, initialise, norm_silu

FEW_STEPS = Denoising.of_family(DEFAULT_FAMILY).schedule
FEW_STEP_LEVELS = NoiseLevels(DEFAULT_FAMILY.shift, FEW_STEPS.sigmas, few=0.5)
"""Half of the noise levels are those of the four-step sampler."""


def build_vae_job(setup: Setup) -> Job:
    if setup.size.vae is None:
        raise PackForcingError(f"At size {setup.size.name} the official VAE is used, not trained: give it as --vae.")
    vae = WanVAE(setup.size.vae)
    initialise(vae, setup.seed)
    course = setup.course("vae")
    norm = fused_norm_silu() if setup.compiled else norm_silu
    phases = scaled_phases(MINIATURE_PHASES, course.steps, setup.batch)
    stage = VAEStage(vae.to(setup.device), phases, course.optimisation, setup.seed, norm, setup.precision)

    def export(training: Training) -> list[Path]:
        vae.load_state_dict(training.learners["vae"].averaged())
        calibrate(vae, setup.seed, clips=min(32, stage.steps))
        return [write_weights(setup.exported("vae"), vae.state_dict())]

    return Job(stage, stage.steps, export)


def scaled_phases(phases: Sequence[Phase], steps: int, batch: int | None) -> tuple[Phase, ...]:
    """Scales phases to `steps` steps in total, in the same proportions, with at least one step each. `batch` None keeps
    their batch sizes.
    """
    total = sum(phase.steps for phase in phases)
    counts = [max(1, round(steps * phase.steps / total)) for phase in phases]
    longest = counts.index(max(counts))
    counts[longest] = max(1, counts[longest] + steps - sum(counts))
    return tuple(Phase(n, phase.frames, batch or phase.batch) for n, phase in zip(counts, phases, strict=True))


def build_teacher_job(setup: Setup) -> Job:
    course = setup.course("teacher")
    stage = TeacherStage(
        build_wan(setup, setup.weights),
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        setup.seed,
        empty_context=setup.empty_context,
        precision=setup.precision,
    )
    return Job(stage, course.steps, exporter(setup, "teacher", {"teacher": "teacher"}), _given(setup.weights))


def build_causal_job(setup: Setup) -> Job:
    course, path = setup.course("causal"), model_before(setup, "causal")
    stage = CausalStage(
        build_wan(setup, path),
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        setup.size.clips.frames_per_block,
        setup.seed,
        FEW_STEP_LEVELS,
        noisy_copies=course.noisy_copies,
        precision=setup.precision,
    )
    return Job(stage, course.steps, exporter(setup, "causal", {"causal": "causal"}), _given(path))


def build_twins_job(setup: Setup) -> Job:
    course, path = setup.course("twins"), model_before(setup, "twins")
    stage = TwinsStage(
        build_wan(setup, path),
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        setup.size.clips.frames_per_block,
        setup.seed,
        FEW_STEP_LEVELS,
        memories=setup.size.twin_memories,
        noisy_copies=course.noisy_copies,
        precision=setup.precision,
        high_res=build_branch(setup, setup.compressor),
        optimisation_of_compressor=course.compressor,
    )
    export = exporter(setup, "twins", {"causal": "twins", "compressor": "twins-compressor"})
    return Job(stage, course.steps, export, _given(path, setup.compressor))


def build_layouts_job(setup: Setup) -> Job:
    """Builds the job that trains model and compressor together in the layouts of long videos."""
    course, path = setup.course("layouts"), require_model_before(setup, "layouts")
    branch_path = compressor_before(setup, *COMPRESSORS_BEFORE)
    layouts, frames = setup.size.joint_layouts, setup.size.clips.frames_per_block
    if layouts is None:
        raise PackForcingError(f"Size {setup.size.name} defines no layouts of long videos: they need the toy world.")
    batches = setup.batches(course.batch)
    stage = JointLayoutStage(
        build_wan(setup, path),
        batches,
        setup.rope,
        course.optimisation,
        frames,
        setup.seed,
        FEW_STEP_LEVELS,
        memories=setup.size.twin_memories,
        noisy_copies=course.noisy_copies,
        precision=setup.precision,
        high_res=build_branch(setup, branch_path),
        optimisation_of_compressor=course.compressor,
        layouts=layouts,
        hidden=HiddenClips(batches, blank_films(load_training_vae(setup), setup.size.clips), frames),
    )
    export = exporter(setup, "layouts", {"causal": "layouts", "compressor": "layouts-compressor"})
    return Job(stage, course.steps, export, _given(path, branch_path))


def build_distill_job(setup: Setup) -> Job:
    """Builds the distillation job. Student and teacher start from the same weights unless another teacher is given; the
    compressor is frozen. Without a compressor only policies without compressed blocks are used.
    """
    course, path = setup.course("distill"), require_model_before(setup, "distill")
    teacher_path, branch_path = setup.teacher or path, compressor_before(setup, *COMPRESSORS_BEFORE)
    model, teacher = build_wan(setup, path), build_frozen_wan(setup, teacher_path)
    branch = build_branch(setup, branch_path) if branch_path else None
    stage = DistillationStage(
        model,
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        setup.size.clips.frames_per_block,
        setup.seed,
        teacher=teacher,
        high_res=branch,
        memories=setup.size.twin_memories if branch else MEMORIES,
        sigmas=FEW_STEPS.sigmas,
        precision=setup.precision,
    )
    frozen = {"teacher": teacher.net, **({"compressor": branch} if branch else {})}
    export = exporter(setup, "distill", {"causal": "distill"})
    return Job(stage, course.steps, export, _given(path, teacher_path, branch_path), frozen)


def build_self_forcing_job(setup: Setup) -> Job:
    """Builds the Self-Forcing job. The real score model is the teacher, and the critic starts from its weights unless
    another file is given.
    """
    course, path = setup.course("self-forcing"), require_model_before(setup, "self-forcing")
    judge, branch_path = require_teacher(setup), compressor_before(setup, *COMPRESSORS_BEFORE)
    critic = setup.critic or judge
    model, real = build_wan(setup, path), build_frozen_wan(setup, judge)
    vae = load_training_vae(setup).requires_grad_(False)
    generator = SelfForcing(
        model,
        setup.rope,
        build_branch(setup, branch_path),
        vae,
        setup.size.memories,
        FEW_STEPS,
        setup.size.clips.frames_per_block,
        setup.size.first_block,
    )
    stage = DMDStage(
        generator,
        real,
        build_critic(setup, critic),
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        needed(course.compressor),
        needed(course.critic),
        setup.seed,
        empty_context=setup.empty_context,
        precision=setup.precision,
    )
    export = exporter(setup, "self-forcing", {"generator": "self-forcing", "compressor": "self-forcing-compressor"})
    return Job(stage, course.steps, export, _given(path, branch_path, judge, critic), {"teacher": real.net, "vae": vae})


def build_compressor_job(setup: Setup) -> Job:
    course, path = setup.course("compressor"), require_model_before(setup, "compressor")
    model, batches, frames = (
        build_frozen_wan(setup, path),
        setup.batches(course.batch),
        setup.size.clips.frames_per_block,
    )
    laid_out: dict[str, Any] = {}
    if setup.size.layouts:
        hidden = HiddenClips(batches, blank_films(load_training_vae(setup), setup.size.clips), frames)
        laid_out = {"layouts": setup.size.layouts, "hidden": hidden}
    stage = (LayoutStage if laid_out else CompressorStage)(
        model,
        build_branch(setup, setup.compressor),
        batches,
        setup.rope,
        course.optimisation,
        frames,
        setup.seed,
        sigmas=FEW_STEPS.sigmas,
        memories=setup.size.compressor_memories,
        precision=setup.precision,
        **laid_out,
    )
    export = exporter(setup, "compressor", {"compressor": "compressor"})
    return Job(stage, course.steps, export, _given(path, setup.compressor), {"model": model.net})


def needed(optimisation: Optimisation | None) -> Optimisation:
    """Returns the optimisation of a network that the stage requires. Raises PackForcingError if the size does not
    define it.
    """
    if optimisation is None:
        raise PackForcingError("This size defines no optimisation of the critic or the compressor for Self-Forcing.")
    return optimisation


def _given(*paths: Path | None) -> Sequence[Path]:
    """Returns the paths that are not None, without duplicates."""
    return tuple(dict.fromkeys(path for path in paths if path))


Builder = Callable[[Setup], Job]
STAGES: dict[str, Builder] = {
    "vae": build_vae_job,
    "teacher": build_teacher_job,
    "causal": build_causal_job,
    "twins": build_twins_job,
    "layouts": build_layouts_job,
    "distill": build_distill_job,
    "self-forcing": build_self_forcing_job,
    "compressor": build_compressor_job,
}
NEW_COMPRESSORS = "twins", "layouts", "self-forcing", "compressor"
"""Stages that create a new compressor if they are given none."""
