"""The stages that `packforcing train` knows: from a size, a folder and options to what the loop runs.

Everything lies in one folder: `<stage>/` with state and log, `<network>.safetensors` with what was learnt, `latents/`
with the encoded clips.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..cache.config import Full
from ..checkpoint.load import read_checkpoint
from ..compressor.high_res import HighRes, build_high_res
from ..compressor.weights import CompressorInfo, save_compressor
from ..errors import PackForcingError
from ..evaluation.little_world.prompt import WORDS
from ..model.config import WanConfig
from ..model.ops import TorchOps, build_on_meta
from ..model.wan import Wan
from ..rope import GridRope
from ..sampler.schedule import Schedule
from ..text.words import WordEncoder
from ..vae.load import load_vae
from ..vae.wan_vae import WanVAE
from . import ranks
from .compressor import TwinsStage
from .data import LatentFolder
from .flow import CausalStage, NoiseLevels, TeacherStage
from .loop import Stage, Training
from .memory import Activations, Plan, activations, plan_memory
from .presets import Course, Size
from .vae import MINIATURE_PHASES, Phase, VAEStage, calibrate, fused_norm_silu, initialise, norm_silu
from .wan import TrainedWan

FEW_STEPS = Schedule.warped((1000.0, 750.0, 500.0, 250.0), shift=5.0)
FEW_STEP_LEVELS = NoiseLevels(5.0, FEW_STEPS.sigmas, few=0.5)
"""Half of the noise levels are those that a four-step sampler will ask for."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """What a stage is built from. `steps` and `batch` None are the size's own."""

    size: Size
    folder: Path
    steps: int | None = None
    batch: int | None = None
    seed: int = 0
    device: torch.device = CPU
    recompute: bool = False
    compiled: bool = False
    weights: Path | None = None
    vae: Path | None = None

    def course(self, stage: str) -> Course:
        """The stage's course at this size; PackForcingError where it has none."""
        if stage not in self.size.courses:
            raise PackForcingError(
                f"At size {self.size.name} there is no stage '{stage}'; expected one of {', '.join(self.size.courses)}."
            )
        course = self.size.courses[stage]
        return replace(course, steps=self.steps or course.steps, batch=self.batch or course.batch)

    def batches(self, batch: int) -> LatentFolder:
        """The clips of the folder `latents`. Prompts of the little world are encoded as they are needed."""
        encode = WordEncoder(WORDS, self.size.model.text_dim, self.size.model.text_len) if self.size.vae else None
        return LatentFolder(self.folder / "latents", encode, batch, self.seed)

    @property
    def rope(self) -> GridRope:
        clips = self.size.clips
        return GridRope(self.size.model.head_dim, (clips.height // 16, clips.width // 16), self.device)

    def exported(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


@dataclass(frozen=True)
class Job:
    """A stage, how many steps of it, and what is written to the setup's folder at its end."""

    stage: Stage
    steps: int
    export: Callable[[Training], Sequence[Path]]


def build_wan(setup: Setup, *before: str) -> TrainedWan:
    """A Wan to train: with the given weights, else with those of the first of the stages `before` that is done, else,
    at a size of the little world, with random ones.
    """
    config = setup.size.model
    found = [setup.weights] if setup.weights else [p for p in map(setup.exported, before) if p.exists()]
    if found:
        net = wan_from_file(found[0], config)
    elif setup.size.vae is None:
        raise PackForcingError(f"Training at size {setup.size.name} begins with a model: give its file as --weights.")
    else:
        net = random_wan(config, setup.seed)
    options = {"recompute": setup.recompute, "dtype": torch.bfloat16, "device": setup.device}
    return TrainedWan(net.to(setup.device), config, **options)


def wan_from_file(path: Path, config: WanConfig) -> Wan:
    """A checkpoint's weights in float32; PackForcingError where it is of another size than `config`."""
    checkpoint = read_checkpoint(path)
    if replace(checkpoint.config, text_len=config.text_len) != config:
        raise PackForcingError(f"{path.name} has sizes {checkpoint.config}; expected {config}. Choose its --size.")
    net = build_on_meta(lambda: Wan(config, TorchOps))
    net.load_state_dict({name: t.float() for name, t in checkpoint.state_dict.items()}, assign=True)
    return net


@torch.no_grad()
def random_wan(config: WanConfig, seed: int) -> Wan:
    """Weights to begin with: projections after Glorot, no flow at all at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Wan(config, TorchOps)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    nn.init.zeros_(net.head.head.weight)
    return net


def build_vae_job(setup: Setup) -> Job:
    if setup.size.vae is None:
        raise PackForcingError(f"At size {setup.size.name} the official VAE is used, not trained: give it as --vae.")
    vae = WanVAE(setup.size.vae)
    initialise(vae, setup.seed)
    course = setup.course("vae")
    norm = fused_norm_silu() if setup.compiled else norm_silu
    phases = scaled_phases(MINIATURE_PHASES, course.steps, setup.batch)
    stage = VAEStage(vae.to(setup.device), phases, course.optimisation, setup.seed, norm)

    def export(training: Training) -> list[Path]:
        vae.load_state_dict(training.learners["vae"].averaged())
        calibrate(vae, setup.seed, clips=min(32, stage.steps))
        return [write_weights(setup.exported("vae"), vae.state_dict())]

    return Job(stage, stage.steps, export)


def scaled_phases(phases: Sequence[Phase], steps: int, batch: int | None) -> tuple[Phase, ...]:
    """Phases of `steps` steps together, in the same proportion, each at least one; `batch` None leaves theirs."""
    total = sum(phase.steps for phase in phases)
    counts = [max(1, round(steps * phase.steps / total)) for phase in phases]
    longest = counts.index(max(counts))
    counts[longest] = max(1, counts[longest] + steps - sum(counts))
    return tuple(Phase(n, phase.frames, batch or phase.batch) for n, phase in zip(counts, phases, strict=True))


def build_teacher_job(setup: Setup) -> Job:
    course = setup.course("teacher")
    stage = TeacherStage(build_wan(setup), setup.batches(course.batch), setup.rope, course.optimisation, setup.seed)
    return Job(stage, course.steps, exporter(setup, {"teacher": "teacher"}))


def build_causal_job(setup: Setup) -> Job:
    course = setup.course("causal")
    stage = CausalStage(
        build_wan(setup, "teacher"),
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        setup.size.clips.frames_per_block,
        setup.seed,
        FEW_STEP_LEVELS,
        noisy_copies=course.noisy_copies,
    )
    return Job(stage, course.steps, exporter(setup, {"causal": "causal"}))


def build_twins_job(setup: Setup) -> Job:
    course = setup.course("twins")
    stage = TwinsStage(
        build_wan(setup, "causal"),
        setup.batches(course.batch),
        setup.rope,
        course.optimisation,
        setup.size.clips.frames_per_block,
        setup.seed,
        FEW_STEP_LEVELS,
        memories=setup.size.twin_memories,
        noisy_copies=course.noisy_copies,
        high_res=build_high_res(setup.size.model.dim, setup.seed).to(setup.device),
        optimisation_of_compressor=replace(course.optimisation, matrices="adamw"),
    )
    return Job(stage, course.steps, exporter(setup, {"causal": "twins", "compressor": "compressor"}))


Builder = Callable[[Setup], Job]
STAGES: dict[str, Builder] = {
    "vae": build_vae_job,
    "teacher": build_teacher_job,
    "causal": build_causal_job,
    "twins": build_twins_job,
}


def exporter(setup: Setup, files: Mapping[str, str]) -> Callable[[Training], list[Path]]:
    """Writes each network's averaged weights to its file, under the official names."""

    def export(training: Training) -> list[Path]:
        written = []
        for network, stem in files.items():
            learner, path = training.learners[network], setup.exported(stem)
            weights = learner.averaged()
            if isinstance(learner.network, HighRes):
                write_compressor(path, weights, setup)
            else:
                write_weights(path, weights)
            written.append(path)
        return written

    return export


def write_compressor(path: Path, weights: Mapping[str, Tensor], setup: Setup) -> None:
    if ranks.rank() == 0:
        branch = build_high_res(setup.size.model.dim)
        branch.load_state_dict(weights)
        info = CompressorInfo(setup.size.name, setup.size.clips.frames_per_block, "packforcing, teacher forcing")
        save_compressor(path, branch.bfloat16(), info)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> Path:
    """Writes bfloat16 weights; a file of that name is replaced whole or not at all. Rank 0 does."""
    if ranks.rank() == 0:
        save_file({name: t.cpu().bfloat16().contiguous() for name, t in weights.items()}, f"{path}.part")
        os.replace(f"{path}.part", path)
    return path


def load_training_vae(setup: Setup) -> WanVAE:
    """The VAE to encode clips with: the given one, or that of the folder."""
    path = setup.vae or setup.exported("vae")
    if not path.exists():
        raise PackForcingError(f"{path} is missing: train one (`packforcing train vae`) or give it as --vae.")
    return load_vae(path, device=setup.device, dtype=torch.float32)


def measured_passes(size: Size) -> dict[str, Activations]:
    """Activations of a clip in the passes of training, by name."""
    return {
        "a whole clip, bidirectional": activations(size.model, size.clips),
        "teacher forcing": activations(size.model, size.clips, Full()),
    }


def plan_job(name: str, job: Job, setup: Setup) -> Plan:
    """The memory of a job on each rank."""
    networks = [(own, net, job.stage.optimisation[own]) for own, net in job.stage.networks.items()]
    passes = measured_passes(setup.size)
    seen = {"teacher": "a whole clip, bidirectional"}.get(name, "teacher forcing")
    count = ranks.ranks()
    samples = 0 if name == "vae" else -(-setup.course(name).batch // count)
    return plan_memory(
        f"Memory of stage '{name}' at size {setup.size.name}",
        networks,
        [(seen, passes[seen])] if samples else [],
        samples=samples,
        ranks=count,
        recompute=setup.recompute,
    )
