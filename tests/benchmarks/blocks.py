"""Time per block and bytes of cache as a video grows: ours against ComfyUI's own sampler, on one model, in one run.

    python -m tests.benchmarks.blocks --output FOLDER [--blocks 200] [--policies packforcing sink_window]

Writes blocks.md, blocks.json and blocks.png. Both samplers run in one process on the same random weights and take turns
block by block, so that a busy machine slows both; the medians are over the five blocks that end at each probe.
ComfyUI's classes need a process where its folder comes first, which is why the work is in
tests/comfyui/scripts/grow.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.torch import save_file

from packforcing_core.model.config import WanConfig
from tests.checkpoints import wan_state_dict
from tests.comfyui.install import PACK, comfyui_folder

SCRIPT = PACK / "tests" / "comfyui" / "scripts" / "grow.py"
CONFIG = WanConfig(dim=512, ffn_dim=2048, num_layers=8, num_heads=4, text_dim=64)
PROBES = (5, 21, 60, 200)
MEDIAN_OVER = 5


def measure(blocks: int, policies: list[str]) -> dict:
    """{"settings": ..., "samplers": {name: {"seconds": [...], "cache_bytes": [...]}}}, one entry a block."""
    environment = {**os.environ, "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(wan_state_dict(CONFIG), weights)
        command = [sys.executable, str(SCRIPT), str(weights), str(blocks), *policies]
        done = subprocess.run(command, cwd=comfyui_folder(), env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def at_probe(values: list[float], block: int) -> float:
    """The median over the blocks that end at block number `block` (counted from 1)."""
    return statistics.median(values[max(0, block - MEDIAN_OVER) : block])


def table(measured: dict) -> str:
    blocks = measured["settings"]["blocks"]
    probes = [probe for probe in PROBES if probe <= blocks]
    head = "".join(f" s at {p} | MB at {p} |" for p in probes)
    lines = [f"| sampler |{head} time, last / {probes[1]} |", "|---|" + "---|" * (2 * len(probes) + 1)]
    for name, run in measured["samplers"].items():
        seconds = [at_probe(run["seconds"], probe) for probe in probes]
        sizes = [run["cache_bytes"][probe - 1] / 1e6 for probe in probes]
        cells = "".join(f" {s:.3f} | {b:.1f} |" for s, b in zip(seconds, sizes, strict=True))
        lines.append(f"| {name} |{cells} {seconds[-1] / seconds[1]:.2f} |")
    return "\n".join(lines)


def plot(measured: dict, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name, run in measured["samplers"].items():
        numbers = range(1, len(run["seconds"]) + 1)
        left.plot(numbers, [at_probe(run["seconds"], n) for n in numbers], label=name)
        right.plot(numbers, [size / 1e6 for size in run["cache_bytes"]], label=name)
    left.set(xlabel="block", ylabel="seconds per block (median of 5)", ylim=(0, None))
    right.set(xlabel="block", ylabel="cache in MB", ylim=(0, None))
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=max(PROBES))
    parser.add_argument("--policies", nargs="+", default=["packforcing", "sink_window"])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    measured = measure(options.blocks, options.policies)
    settings = ", ".join(f"{name} {value}" for name, value in measured["settings"].items())
    report = f"{settings}\n\n{table(measured)}\n"
    print(report)
    (options.output / "blocks.md").write_text(report, encoding="utf-8")
    (options.output / "blocks.json").write_text(json.dumps(measured), encoding="utf-8")
    plot(measured, options.output / "blocks.png")


if __name__ == "__main__":
    main()
