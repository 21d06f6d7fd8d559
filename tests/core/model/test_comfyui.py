"""The same weights in ComfyUI's own causal Wan, which runs in a process of its own: its `nodes` would hide ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import Full
from packforcing_core.cache.layer_kv import KVShape
from packforcing_core.model.causal import CausalWan
from packforcing_core.model.config import WanConfig
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import frame_timesteps
from packforcing_core.sampler.rollout import commit_block
from tests.checkpoints import wan_state_dict
from tests.exactness import DEEP, steps_off

SCRIPT = Path(__file__).parents[2] / "comfyui" / "scripts" / "causal_wan.py"
CONFIG = WanConfig(dim=256, ffn_dim=320, num_layers=3, num_heads=2, text_dim=64)
GRID = (2, 3)
TIMESTEPS = (1000.0, 625.0)


def our_flows(weights: dict, context: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    net = Wan(CONFIG, TorchOps).eval().requires_grad_(False)
    net.load_state_dict(weights)
    model = CausalWan(net, CONFIG)
    blocks, frames = noisy.shape[0], noisy.shape[3]
    shape = KVShape(CONFIG.num_layers, CONFIG.num_heads, CONFIG.head_dim, GRID[0] * GRID[1], torch.float32)
    partitions = Full().partitions(frames).limited_to(blocks * frames)
    cache = KVCache(partitions, shape, GridRope(CONFIG.head_dim, GRID), sdpa)
    text = model.encode_text(context)
    flows = []
    for block in range(blocks):
        view = cache.begin_block()
        for timestep in TIMESTEPS:
            flows.append(model.flow(noisy[block], frame_timesteps(timestep, noisy[block]), text, view))
        flows.append(model.flow(clean[block], frame_timesteps(0.0, clean[block]), text, view))
        commit_block(model, text, cache, view, clean[block], 0.0)
    return torch.stack(flows).unflatten(0, (blocks, -1))


@pytest.mark.comfyui
@pytest.mark.parametrize("frames", [1, 3])
def test_comfyuis_own_causal_wan_gives_the_same_flow_block_by_block(tmp_path, comfyui_source, frames):
    generator = torch.Generator().manual_seed(4)
    weights = wan_state_dict(CONFIG)
    context = torch.randn(1, 512, CONFIG.text_dim, generator=generator)
    noisy, clean = torch.randn(2, 6, 1, 16, frames, 2 * GRID[0], 2 * GRID[1], generator=generator)
    inputs, outputs = tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"
    given = {"context": context, "noisy": noisy, "clean": clean, "timesteps": torch.tensor(TIMESTEPS)}
    save_file({**weights, **given}, inputs)
    command = [sys.executable, str(SCRIPT), str(inputs), str(outputs)]
    done = subprocess.run(command, cwd=comfyui_source, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = load_file(outputs)["flows"]
    ours = our_flows(weights, context, noisy, clean)
    off = [steps_off(*pair) for pair in zip(ours, theirs, strict=True)]
    print("rounding steps apart per block " + ", ".join(f"{steps:.0f}" for steps in off))
    assert max(off) < DEEP
