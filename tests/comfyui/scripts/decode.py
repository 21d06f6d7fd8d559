"""ComfyUI's own Wan VAE and ours on the same frames, in its folder: `python decode.py inputs.safetensors DTYPE REPEATS`

The inputs are the weights and `latents` (the VAE's own), DTYPE what both compute in. Prints one JSON line: CPU seconds
of either by repeat, taken in turns, and the largest and the mean difference. With `ours` (or `theirs`) in place of
REPEATS it decodes twice and prints the bytes by which that raised the process's memory at its peak: the first time,
when kernels are built too, and the second. With `count` it computes nothing and prints, for either, the bytes of all
tensors at the worst moment, found on the meta device.
"""

import ctypes
import importlib.util
import json
import re
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

inputs, dtype, what = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()  # the modules below read the options when they are imported

import comfy.model_management  # noqa: E402
from comfy.ldm.wan.vae import WanVAE  # noqa: E402

from packforcing_core.vae.config import normalise  # noqa: E402
from packforcing_core.vae.load import load_vae  # noqa: E402
from packforcing_core.vae.streaming import decode  # noqa: E402

# Copies: of a mapped file the decode would have to read what it touches first.
tensors = {name: tensor.to(getattr(torch, dtype), copy=True) for name, tensor in load_file(inputs).items()}
latents = tensors.pop("latents")
torch.set_num_threads(1)


def their_decode():
    width = tensors["decoder.head.0.gamma"].shape[0]
    vae = WanVAE(dim=width, z_dim=16, num_res_blocks=2, temperal_downsample=[False, True, True])
    vae.load_state_dict(tensors, assign=True)
    return lambda: vae.decode(latents).clamp(-1, 1)


def our_decode():
    vae, own = load_vae(tensors), normalise(latents)
    return lambda: decode(vae, own)


def resident(line: str) -> int:
    """Bytes of this process by a line of its status: VmRSS now, VmHWM at its peak."""
    return int(re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024


def peak(run) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # Freed memory that the process still has would be used again, and not counted.
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def counted_peaks() -> dict:
    """Weights and latents do not count; nor does what kernels take for themselves, which no tensor shows."""
    here = Path(__file__).parents[3] / "packforcing_core" / "laboratory" / "training" / "live_bytes.py"
    spec = importlib.util.spec_from_file_location("live_bytes", here)
    live_bytes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(live_bytes)
    comfy.model_management.get_free_memory = lambda *_: 1 << 50  # It asks the device, which this one cannot answer.
    made = {}
    for name, build in (("ours", our_decode), ("theirs", their_decode)):
        run = build()
        with live_bytes.LiveBytes([*tensors.values(), latents]) as memory:
            run()
        made[name] = memory.peak
    return made


def times(repeats: int) -> dict:
    runs = {"ours": our_decode(), "theirs": their_decode()}
    seconds = {name: [] for name in runs}
    for number in range(repeats + 1):
        made = {}
        for name, run in runs.items():
            began = time.process_time()
            made[name] = run()
            if number > 0:  # The first warms up.
                seconds[name].append(time.process_time() - began)
    difference = (made["ours"] - made["theirs"]).abs()
    return {"seconds": seconds, "difference": difference.max().item(), "mean_difference": difference.mean().item()}


if what == "count":
    tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
    latents = latents.to("meta")

with torch.no_grad():
    if what == "count":
        print(json.dumps(counted_peaks()))
    elif what in ("ours", "theirs"):
        decoding = {"ours": our_decode, "theirs": their_decode}[what]()
        print(json.dumps([peak(decoding) for _ in range(2)]))
    else:
        print(json.dumps(times(int(what))))
