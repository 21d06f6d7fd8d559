"""Runs ComfyUI's own causal Wan block by block: `python causal_wan.py inputs.safetensors outputs.safetensors`.

The inputs are the weights, `context`, `noisy` and `clean` [blocks, 1, 16, F, h, w] and `timesteps` [steps]. For each
block every timestep is run on the noisy latents (rewinding the cache), then the clean ones at 0. `flows` is
[blocks, steps + 1, 1, 16, F, h, w], in ComfyUI's folder.
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

import comfy.ops  # noqa: E402
from comfy.ldm.wan.ar_model import CausalWanModel  # noqa: E402

tensors = load_file(inputs)
context, noisy, clean, timesteps = (tensors.pop(name) for name in ("context", "noisy", "clean", "timesteps"))
dim = tensors["head.modulation"].shape[2]
model = CausalWanModel(
    dim=dim,
    ffn_dim=tensors["blocks.0.ffn.0.weight"].shape[0],
    text_dim=context.shape[2],
    num_heads=dim // 128,
    num_layers=sum(name.endswith("self_attn.q.weight") for name in tensors),
    dtype=torch.float32,
    operations=comfy.ops.disable_weight_init,
)
model.load_state_dict(tensors)
frames, tokens = noisy.shape[3], noisy.shape[3] * (noisy.shape[4] // 2) * (noisy.shape[5] // 2)
kv = model.init_kv_caches(1, len(noisy) * tokens, "cpu", torch.float32)
cross = model.init_crossattn_caches(1, "cpu", torch.float32)
flows = []
with torch.no_grad():
    for block in range(len(noisy)):
        for t, latents in [*((t, noisy[block]) for t in timesteps), (torch.tensor(0.0), clean[block])]:
            for cache in kv:
                cache["end"] = block * tokens
            flows.append(model.forward_block(latents, t.expand(1, frames), context, block * frames, kv, cross))
save_file({"flows": torch.stack(flows).unflatten(0, (len(noisy), -1)).contiguous()}, outputs)
