"""Stages of tiny networks on made-up data, for tests; as a program, their losses on the ranks of a torchrun."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from packforcing_core.cache.config import Full, PackForcing, SinkWindow
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.laboratory.training import ranks
from packforcing_core.laboratory.training.compressor import TwinsStage
from packforcing_core.laboratory.training.data import LatentBatch
from packforcing_core.laboratory.training.dmd import DMDStage
from packforcing_core.laboratory.training.flow import CausalStage, TeacherStage
from packforcing_core.laboratory.training.learner import Optimisation
from packforcing_core.laboratory.training.loop import Stage, Training
from packforcing_core.laboratory.training.saved import saved_step
from packforcing_core.laboratory.training.self_forcing import SelfForcing
from packforcing_core.laboratory.training.vae import Phase, VAEStage, initialise
from packforcing_core.laboratory.training.wan import TrainedWan
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.wan_vae import WanVAE
from tests.small import CONFIG, GRID

OPTIMISATION = Optimisation(1e-3, warmup=2, average=0.9)


def small_net(seed: int = 0) -> Wan:
    torch.manual_seed(seed)
    return Wan(CONFIG, TorchOps)


def moving_spots(step: int, batch: int = 4, frames: int = 6) -> LatentBatch:
    """Latents in which a spot of one channel moves right, by the frame; the prompt says in which channel."""
    indices = ranks.share(batch)
    latents, context = [], []
    for index in indices:
        generator = torch.Generator().manual_seed(1000 * step + index)
        channel, start = (int(torch.randint(n, (), generator=generator)) for n in (4, 6))
        clip = torch.zeros(16, frames, 2 * GRID[0], 2 * GRID[1])
        for frame in range(frames):
            clip[channel, frame, :, (start + frame) % 6] = 3.0
        latents.append(clip)
        context.append(torch.nn.functional.one_hot(torch.tensor([channel]), CONFIG.text_dim).float() * 4)
    clips = torch.stack(latents)
    # Three blocks of two frames, each a single compressed token.
    low_res = torch.nn.functional.adaptive_avg_pool3d(clips, (3, 2, 2))
    return LatentBatch(clips, torch.stack(context), indices, low_res)


def small_rope() -> GridRope:
    return GridRope(CONFIG.head_dim, GRID)


def teacher(optimisation: Optimisation = OPTIMISATION, recompute: bool = False) -> TeacherStage:
    model = TrainedWan(small_net(), CONFIG, recompute=recompute)
    return TeacherStage(model, moving_spots, small_rope(), optimisation, precision=torch.float32)


def causal(optimisation: Optimisation = OPTIMISATION, recompute: bool = False) -> CausalStage:
    model = TrainedWan(small_net(), CONFIG, recompute=recompute)
    memories = Full(), SinkWindow(window_frames=4, sink_frames=1)
    return CausalStage(model, moving_spots, small_rope(), optimisation, 2, memories=memories, precision=torch.float32)


def twins() -> TwinsStage:
    model = TrainedWan(small_net(), CONFIG, recompute=True)
    short = PackForcing(sink_frames=2, recent_frames=2, mid_span=2)
    return TwinsStage(
        *(model, moving_spots, small_rope(), OPTIMISATION, 2),
        memories=(short,),
        precision=torch.float32,
        high_res=build_high_res(CONFIG.dim),
        optimisation_of_compressor=OPTIMISATION,
    )


def self_forcing() -> DMDStage:
    model, real, fake = (TrainedWan(small_net(seed), CONFIG, recompute=True) for seed in (0, 1, 1))
    schedule = Schedule.warped((1000.0, 500.0), shift=5.0)
    memory = PackForcing(sink_frames=0, recent_frames=2, mid_span=2)
    generator = SelfForcing(model, small_rope(), build_high_res(CONFIG.dim), None, (memory,), schedule, 2)
    rates = {f"optimisation_of_{name}": OPTIMISATION for name in ("generator", "compressor", "critic")}
    settings = {**rates, "critic_updates": 1, "precision": torch.float32}
    return DMDStage(generator, real, fake, moving_spots, small_rope(), **settings)


def vae(optimisation: Optimisation = OPTIMISATION) -> VAEStage:
    network = WanVAE(VAEConfig(8, 8, num_res_blocks=1))
    initialise(network, seed=0)
    phases = Phase(4, 1, 4), Phase(100, 5, 2)
    return VAEStage(network, phases, optimisation, seed=0, precision=torch.float32)


MUON = replace(OPTIMISATION, matrices="muon")
CASES: dict[str, Callable[[], Stage]] = {
    "teacher": teacher,
    "causal, recomputed": lambda: causal(recompute=True),
    "causal with Muon": lambda: causal(MUON),
    "twins, recomputed": twins,
    "self-forcing, recomputed": self_forcing,
    "vae": vae,
}
TOTAL_STEPS = 6


def run(stage: Stage, steps: int, folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the next `steps` steps of a training of TOTAL_STEPS, which is then saved, and its weights."""
    training = Training(stage, TOTAL_STEPS, folder, save_every=(saved_step(folder) or 0) + steps)
    losses = []
    for _, figures in islice(training.run(), steps):
        losses += [value for name, value in figures.items() if name.startswith("loss/")]
    weights = {f"{name}.{key}": t for name, own in training.learners.items() for key, t in own.averaged().items()}
    return losses, weights


def main(folder: Path) -> None:
    """Writes losses and averaged weights of three steps of every case, and their saved states, to `folder`."""
    torch.set_num_threads(1)
    ranks.join(torch.device("cpu"))
    for name, build in CASES.items():
        losses, weights = run(build(), 3, folder / name)
        if ranks.rank() == 0:
            (folder / name / "losses.json").write_text(json.dumps(losses))
            save_file({key: t.contiguous() for key, t in weights.items()}, folder / name / "weights.safetensors")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
