"""Time per block and bytes of cache as a video grows: ours against ComfyUI's own sampler, on one model, in one run.

    python -m tests.benchmarks.blocks --output FOLDER [--probes 5 21 60 200] [--over 10]

Writes blocks.md, blocks.json and blocks.png. All runs are in one process on the same random weights and take turns
block by block; the clock is the thread's CPU time, so that a busy machine matters little. Medians are over the blocks
that end at each probe, the first of them left out to warm up; ratios are medians of the blocks' own. "bare passes" are
ours without cache and loop. ComfyUI's classes need a process where its folder comes first, which is why the work is in
tests/comfyui/scripts/grow.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
from safetensors.torch import save_file

from packforcing_core.model.config import WanConfig
from tests.checkpoints import wan_state_dict
from tests.comfyui.install import PACK, comfyui_folder

SCRIPT = PACK / "tests" / "comfyui" / "scripts" / "grow.py"
CONFIG = WanConfig(dim=512, ffn_dim=2048, num_layers=8, num_heads=4, text_dim=64)
PROBES = (5, 21, 60, 200)
FULL = 21
"""The first block with all slots full."""
OURS, BARE = "packforcing", "bare passes"
RUNS = (OURS, "packforcing compiled", BARE, "window")


def timed_blocks(probes: list[int], over: int) -> list[int]:
    """The blocks to time, counted from 1: `over` that end at each probe, and one before them to warm up."""
    return sorted({block for probe in probes for block in range(max(1, probe - over), probe + 1)})


def measure(blocks: list[int], runs: list[str], config: WanConfig = CONFIG) -> dict:
    """{"settings": ..., "samplers": {name: {"blocks": [...], "seconds": [...], "cache_bytes": [...]}}, ...}."""
    environment = {**os.environ, "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(wan_state_dict(config), weights)
        command = [sys.executable, str(SCRIPT), str(weights), json.dumps(blocks), *runs]
        done = subprocess.run(command, cwd=comfyui_folder(), env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def at_probe(run: dict, probe: int, over: int, key: str = "seconds") -> list[float]:
    """The values of the blocks that end at block `probe`, without the one that warms up."""
    first = max(1, probe - over) + 1
    return [value for block, value in zip(run["blocks"], run[key], strict=True) if first <= block <= probe]


def summary(measured: dict, probes: list[int], over: int) -> dict:
    """Medians of seconds by run and probe; growth = the last probe's over that of block 21; overhead over the bare
    passes at the last probe, as the median of the blocks' own ratios.
    """
    samplers = measured["samplers"]
    seconds = {n: {p: median(at_probe(run, p, over)) for p in probes} for n, run in samplers.items()}
    result = {"seconds": seconds, "compiled_graphs": measured["compiled_graphs"]}
    result["growth"] = {n: at[max(probes)] / at[FULL if FULL in at else min(probes)] for n, at in seconds.items()}
    if OURS in samplers and BARE in samplers:
        pairs = [
            ours / bare
            for probe in probes
            if probe >= FULL
            for ours, bare in zip(
                at_probe(samplers[OURS], probe, over), at_probe(samplers[BARE], probe, over), strict=True
            )
        ]
        result["loop_overhead"] = median(pairs) - 1 if pairs else None
    return result


def table(measured: dict, probes: list[int], over: int) -> str:
    numbers = summary(measured, probes, over)
    head = "".join(f" s at {p} | MB at {p} |" for p in probes)
    lines = [f"| run |{head} time, {max(probes)} / {FULL} |", "|---|" + "---|" * (2 * len(probes) + 1)]
    for name, run in measured["samplers"].items():
        cells = "".join(
            f" {numbers['seconds'][name][p]:.3f} | {at_probe(run, p, over, 'cache_bytes')[-1] / 1e6:.1f} |"
            for p in probes
        )
        lines.append(f"| {name} |{cells} {numbers['growth'][name]:.2f} |")
    if numbers.get("loop_overhead") is not None:
        lines += ["", f"loop overhead over bare passes, block {FULL} on: {100 * numbers['loop_overhead']:.1f}%"]
    graphs = numbers["compiled_graphs"]
    lines += ["", f"compiled graphs after each timed block: {graphs}"]
    return "\n".join(lines)


def plot(measured: dict, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name, run in measured["samplers"].items():
        left.plot(run["blocks"], run["seconds"], ".", label=name)
        right.plot(run["blocks"], [size / 1e6 for size in run["cache_bytes"]], label=name)
    left.set(xlabel="block", ylabel="seconds per block", ylim=(0, None))
    right.set(xlabel="block", ylabel="cache in MB", ylim=(0, None))
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, nargs="+", default=list(PROBES))
    parser.add_argument("--over", type=int, default=10, help="blocks that each median is over")
    parser.add_argument("--layers", type=int, default=CONFIG.num_layers)
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    measured = measure(
        timed_blocks(options.probes, options.over), options.runs, replace(CONFIG, num_layers=options.layers)
    )
    settings = ", ".join(f"{name} {value}" for name, value in measured["settings"].items())
    report = f"{settings}\n\n{table(measured, options.probes, options.over)}\n"
    print(report)
    (options.output / "blocks.md").write_text(report, encoding="utf-8")
    (options.output / "blocks.json").write_text(json.dumps(measured), encoding="utf-8")
    plot(measured, options.output / "blocks.png")


if __name__ == "__main__":
    main()
