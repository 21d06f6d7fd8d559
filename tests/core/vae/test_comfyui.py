"""The same weights in ComfyUI's own Wan VAE, which runs in a process of its own: its `nodes` would hide ours."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.vae.config import VAEConfig, normalise, unnormalise
from packforcing_core.vae.streaming import decode, encode
from tests.exactness import DEEP, steps_off
from tests.vaes import random_latents, random_vae, random_video

SCRIPT = Path(__file__).parents[2] / "comfyui" / "scripts" / "wan_vae.py"


@pytest.mark.comfyui
@pytest.mark.parametrize("frames", [1, 5])
def test_comfyuis_own_vae_gives_the_same_video_and_latents(tmp_path, comfyui_source, frames):
    vae = random_vae(VAEConfig(encoder_dim=8, decoder_dim=8))
    latents, video = random_latents(frames), random_video(4 * frames - 3)
    inputs, outputs = tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"
    save_file({**vae.state_dict(), "latents": unnormalise(latents), "video": video}, inputs)
    command = [sys.executable, str(SCRIPT), str(inputs), str(outputs)]
    done = subprocess.run(command, cwd=comfyui_source, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = load_file(outputs)
    decoded = steps_off(decode(vae, latents), theirs["decoded"].clamp(-1, 1))
    encoded = steps_off(encode(vae, video), normalise(theirs["encoded"]))
    print(f"rounding steps apart: decoded {decoded:.0f}, encoded {encoded:.0f}")
    assert decoded < DEEP
    assert encoded < DEEP
    assert torch.isfinite(theirs["decoded"]).all()
