"""Runs ComfyUI's own Wan VAE: `python wan_vae.py inputs.safetensors outputs.safetensors`, in ComfyUI's folder.

The inputs are the weights, `latents` (the VAE's own) and `video`; the outputs are `decoded` and `encoded`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

inputs, outputs = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()  # the modules below read the options when they are imported

from comfy.ldm.wan.vae import WanVAE  # noqa: E402

tensors = load_file(inputs)
latents, video = tensors.pop("latents"), tensors.pop("video")
vae = WanVAE(
    dim=tensors["decoder.head.0.gamma"].shape[0], z_dim=16, num_res_blocks=2, temperal_downsample=[False, True, True]
)
vae.load_state_dict(tensors)
with torch.no_grad():
    results = {"decoded": vae.decode(latents), "encoded": vae.encode(video)}
save_file({name: result.contiguous() for name, result in results.items()}, outputs)
