"""What a run of 1.3B at 832x480 takes: the plan of a few layers against a count of more, for each block length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from packforcing_core.cache.config import FULL_SPAN, PackForcing
from packforcing_core.checkpoint.families import FAMILIES
from packforcing_core.geometry import GB, VideoGeometry
from packforcing_core.laboratory.training.selfmade.base import Base, learnt_memories
from packforcing_core.laboratory.training.selfmade.plan import Ways, counted, plan_run, planned
from packforcing_core.laboratory.training.selfmade.run import WAN
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.recipe.recipe import default_policy
from packforcing_core.vae.config import VAEConfig
from tests.core.laboratory.training.selfmade.parts import FAMILY_OF

pytestmark = pytest.mark.long


def wan_base(frames: int, size: str = "1.3B") -> Base:
    family = replace(FAMILIES[FAMILY_OF[frames]], frames_per_block=frames)
    clip = VideoGeometry(832, 480, 16.0, frames, 21 // frames)
    memories = learnt_memories(PackForcing(mid_span=FULL_SPAN))
    return Base(Path("wan.safetensors"), WAN_SIZES[size], family, clip, default_policy(family), memories)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_the_plan_of_a_step_is_its_peak_within_five_percent(frames):
    base = wan_base(frames)
    few = replace(base, config=replace(base.config, num_layers=6))
    plan, peak = planned(few, torch.bfloat16, Ways()), counted(few, torch.bfloat16, Ways())
    print(f"blocks of {frames}: planned {plan / GB:.2f} GB, counted {peak / GB:.2f} GB")
    assert abs(plan / peak - 1) < 0.05


@pytest.mark.parametrize("size, card", [("1.3B", 24), ("14B", 141)])
def test_it_fits(size, card):
    plan = plan_run(wan_base(3, size), VAEConfig(), WAN.optimisation, torch.bfloat16, Ways(), 400, 200)
    print("\n".join(plan.lines()))
    assert plan.peak < card * GB
