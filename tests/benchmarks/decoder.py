"""Our decoder against ComfyUI's Wan VAE on the same frames, in one run: time, peak memory and the largest difference.

    python -m tests.benchmarks.decoder [--sizes 64x104 128x64] [--latent-frames 3] [--repeats 3] [--width 96]
        [--dtype float32] [--count]

Sizes are pixels, rows x columns. Both take turns in one process for the time (CPU seconds of one thread) and have a
process each for the peak, which is what decoding adds to the resident memory of a process that holds the weights: the
first decode, which builds kernels besides, and one after it. With --count nothing is computed: the bytes of all tensors
at the worst moment, as the meta device counts them, at any size in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from packforcing_core.vae.config import VAEConfig, unnormalise
from tests.comfyui.install import PACK, comfyui_folder
from tests.vaes import random_latents, random_vae

SCRIPT = PACK / "tests" / "comfyui" / "scripts" / "decode.py"


def measure(size: tuple[int, int], latent_frames: int, repeats: int, width: int, dtype: str, count: bool) -> dict:
    """{"seconds": {"ours": [...], "theirs": [...]}, "difference": ..., "mean_difference": ..., "peak_bytes": {"ours":
    [first, again], "theirs": [...]}}, or with `count` {"ours": bytes, "theirs": bytes}.
    """
    environment = {**os.environ, "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}
    vae = random_vae(VAEConfig(encoder_dim=width, decoder_dim=width))
    latents = unnormalise(random_latents(latent_frames, size[0] // 8, size[1] // 8))
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        save_file({**vae.state_dict(), "latents": latents}, inputs)

        def run(what: str):
            command = [sys.executable, str(SCRIPT), str(inputs), dtype, what]
            done = subprocess.run(command, cwd=comfyui_folder(), env=environment, stdout=subprocess.PIPE, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        if count:
            return run("count")
        return {**run(str(repeats)), "peak_bytes": {name: run(name) for name in ("ours", "theirs")}}


def row(size: str, measured: dict) -> str:
    ours, theirs = (measured["seconds"][name] for name in ("ours", "theirs"))
    time_ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    peaks = measured["peak_bytes"]
    cells = [f"{median(ours):.2f}", f"{median(theirs):.2f}", f"{time_ratio:.2f}"]
    for own, other in zip(peaks["ours"], peaks["theirs"], strict=True):
        cells += [f"{own / 1e6:.0f}", f"{other / 1e6:.0f}", f"{own / other:.2f}"]
    cells += [f"{measured['difference']:.0e}", f"{measured['mean_difference']:.0e}"]
    return f"| {size} | {' | '.join(cells)} |"


def measured_at(size: str, options: argparse.Namespace) -> dict:
    rows, columns = map(int, size.split("x"))
    return measure((rows, columns), options.latent_frames, options.repeats, options.width, options.dtype, options.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["64x104", "128x64"])
    parser.add_argument("--latent-frames", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--count", action="store_true", help="tensors only, nothing computed")
    options = parser.parse_args()
    frames = f"{options.latent_frames} latent frames"
    print(f"width {options.width}, {frames}, {options.dtype}, torch {torch.__version__}\n")
    if options.count:
        print("| pixels | ours MB | ComfyUI MB | ratio |\n|---|---|---|---|", flush=True)
        for size in options.sizes:
            peaks = measured_at(size, options)
            ours, theirs = peaks["ours"], peaks["theirs"]
            print(f"| {size} | {ours / 1e6:.0f} | {theirs / 1e6:.0f} | {ours / theirs:.2f} |", flush=True)
        return
    peaks = "| ours MB, first | ComfyUI MB, first | ratio | ours MB, again | ComfyUI MB, again | ratio "
    print(f"| pixels | ours s | ComfyUI s | ratio {peaks}| difference | mean |")
    print("|---|" + "---|" * 11, flush=True)
    for size in options.sizes:
        print(row(size, measured_at(size, options)), flush=True)


if __name__ == "__main__":
    main()
