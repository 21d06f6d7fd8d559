"""A run of 1.3B at 832x480 on the meta device: rollout, step, score and file of the command beside its plan."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from packforcing_core.cache.config import PackForcing
from packforcing_core.cache.policies.packforcing import FULL_SPAN
from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.compressor.high_res import FUSIONS, Fusion, HighRes
from packforcing_core.compressor.weights import load_compressor
from packforcing_core.geometry import GB, VideoGeometry
from packforcing_core.laboratory.training.loop import Training
from packforcing_core.laboratory.training.selfmade import plan, run, score, stage
from packforcing_core.laboratory.training.selfmade.base import Base, learnt_memories
from packforcing_core.laboratory.training.selfmade.clips import Clips
from packforcing_core.laboratory.training.selfmade.plan import (
    SelfmadePlan,
    Ways,
    build_meta_model,
    counted,
    longest_layout,
    plan_run,
)
from packforcing_core.laboratory.training.selfmade.score import Examiner
from packforcing_core.laboratory.training.selfmade.state import State
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.model.ops import build_on_meta
from packforcing_core.recipe.recipe import default_policy
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.wan_vae import WanVAE
from tests.core.laboratory.training.selfmade.parts import FAMILY_OF
from tests.meta_device import MetaDevice

CLIPS = 3
META = torch.device("meta")


def wan_base(frames: int, size: str = "1.3B", layers: int | None = None, blocks: int | None = None) -> Base:
    family = replace(FAMILIES[FAMILY_OF[frames]], frames_per_block=frames)
    clip = VideoGeometry(832, 480, 16.0, frames, blocks or 21 // frames)
    config = replace(WAN_SIZES[size], num_layers=layers or WAN_SIZES[size].num_layers)
    # Four steps from the first block on, also of a family that gives the first more: what it takes is the same.
    family = replace(family, first_block_steps=None)
    memories = learnt_memories(PackForcing(mid_span=FULL_SPAN))
    return Base(Path("wan.safetensors"), config, family, clip, default_policy(family), memories)


def wan_plan(base: Base, ways: Ways | None = None) -> SelfmadePlan:
    return plan_run(base, VAEConfig(), run.WAN.optimisation, torch.bfloat16, ways or Ways(), run.CLIPS, 200)


def texts(prompts: list[str]) -> Tensor:
    config = WAN_SIZES["1.3B"]
    return torch.zeros(len(prompts), config.text_len, config.text_dim)


def dry_run(base: Base, folder: Path, patch: pytest.MonkeyPatch, fusion: Fusion) -> MetaDevice:
    """One clip, the score, one step of two clips, the score again and the file, measured."""
    order = run.Order(base.path, base.path, folder, folder, 1.0, steps=1, batch=2, device=META, fusion=fusion)
    job = run.Job(order, base, replace(run.WAN, batch=2), ["a prompt", "another"], torch.bfloat16)
    clips = Clips(folder / "clips", base, job.prompts, 0)
    with MetaDevice() as device:
        model = build_meta_model(base.config, torch.bfloat16, recompute=True)
        vae = build_on_meta(lambda: WanVAE(VAEConfig())).bfloat16()
        with device.measured("rollout"):
            clips.make(0, model, vae, texts)
        del vae
        for index in range(1, CLIPS):
            shutil.copy(clips.path(0), clips.path(index))
        patch.setattr(run, "HELD", 1)
        patch.setattr(run, "plot", lambda *_: None)
        patch.setattr(
            run, "build_high_res", lambda dim, _=0, fusion="add": build_on_meta(lambda: HighRes(dim, fusion=fusion))
        )
        patch.setattr(score, "BETWEEN", (plan.MOST_BETWEEN,))
        patch.setattr(stage, "drawn_layout", lambda *_: longest_layout(base))
        patch.setattr(Training, "save", lambda self: None)
        measured(device, patch, Training, "_step", "step")
        measured(device, patch, Examiner, "ask", "score")
        # What is compared with is asked by the same passes.
        seconds = Examiner(model, clips, texts, range(1)).seconds(plan.MOST_BETWEEN)
        (folder / "scores.json").write_text(
            f'{{"references": {{"zero-shot": {{"{seconds:.1f}": 1.0}}}}, "scores": []}}'
        )
        state = State(folder / "state.json", {}, clips=CLIPS)
        # Other weights than the model's: those of the file say nothing of what it takes.
        run.learn(job, state, clips, model, texts, SimpleNamespace(state_dict={}), print)
    return device


def measured(device: MetaDevice, patch: pytest.MonkeyPatch, owner: type, name: str, what: str) -> None:
    real = getattr(owner, name)

    def inner(*arguments):
        with device.measured(what):
            return real(*arguments)

    patch.setattr(owner, name, inner)


def compared(base: Base, folder: Path, patch: pytest.MonkeyPatch, fusion: Fusion = "add") -> None:
    wanted, device = wan_plan(base, Ways(fusion=fusion)), dry_run(base, folder, patch, fusion)
    shares = {what: getattr(wanted, what) / peak for what, peak in device.peaks.items()}
    for what, share in shares.items():
        print(
            f"blocks of {base.clip.frames_per_block}, {base.config.num_layers} layers, {what}: planned "
            f"{getattr(wanted, what) / GB:.2f} GB, counted {device.peaks[what] / GB:.2f} GB, {share:.3f}"
        )
    assert set(shares) == {"rollout", "step", "score"}
    assert all(abs(share - 1) < 0.05 for share in shares.values())
    file = folder / "wan-compressor.safetensors"
    found = load_compressor(file, base.config, base.clip.frames_per_block)
    assert (found.high_res.dim, found.high_res.fusion) == (base.config.dim, fusion)
    assert found.info.told["size"] == "832x480"
    file.unlink()


@pytest.fixture(autouse=True)
def counted_once(monkeypatch) -> None:
    """Plans of the same sizes count the same few layers."""
    monkeypatch.setattr(plan, "counted", _counted)


@cache
def _counts(base: Base, *asked) -> int:
    return counted(base, *asked)


def _counted(base: Base, dtype: torch.dtype, ways: Ways, layers: int | None = None, learns: bool = True) -> int:
    config = replace(base.config, num_layers=layers or base.config.num_layers)
    return _counts(replace(base, config=config), dtype, ways, None, learns)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_dry_run_takes_what_the_plan_says(fusion, tmp_path, monkeypatch):
    """Few layers and short layouts: the others take a minute."""
    monkeypatch.setattr(plan, "MOST_BETWEEN", 1)
    compared(wan_base(3, layers=2, blocks=5), tmp_path, monkeypatch, fusion)


@pytest.mark.long
@pytest.mark.parametrize("card", [24, 16])
def test_the_whole_model_fits(card):
    found = wan_plan(wan_base(3))
    print(*found.lines(), sep="\n")
    assert found.peak < card * GB - run.RESERVE


@pytest.mark.long
@pytest.mark.parametrize(("frames", "layers"), [(1, 30), (3, 30), (4, 30)])
def test_all_layers_and_blocks_of_every_length_take_what_the_plan_says(frames, layers, tmp_path, monkeypatch):
    compared(wan_base(frames, layers=layers), tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_every_option_takes_less(frames):
    base = wan_base(frames)
    in_8_bits = replace(base, memory=replace(base.memory, kv_int8="all"))
    plans = {
        "as it is": wan_plan(base),
        "--levels 1": wan_plan(base, Ways(levels=1)),
        "--levels 1 --kv-int8": wan_plan(in_8_bits, Ways(levels=1)),
    }
    for name, found in plans.items():
        print(f"blocks of {frames}, {name}:", *found.lines(), sep="\n")
    peaks = [found.peak for found in plans.values()]
    assert peaks[0] < 16 * GB - run.RESERVE
    assert sorted(peaks, reverse=True) == peaks


@pytest.mark.long
def test_the_14b_fits_a_card_of_141_gb():
    found = wan_plan(wan_base(3, "14B"))
    print("\n".join(found.lines()))
    assert found.peak < 141 * GB
