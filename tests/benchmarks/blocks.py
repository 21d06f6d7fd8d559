"""Time per block as a video grows: ours against ComfyUI's own sampler, on one model, in one run.

    python -m tests.benchmarks.blocks --output FOLDER [--positions 5 21 60 200] [--rounds 50] [--minutes 30]

Writes blocks.md, blocks.json and blocks.png. All runs are in one process on the same random weights and take turns
block by block; the clock is the thread's CPU time, so that a busy machine matters little. Every run makes the block at
each position once a round, behind random keys and values; medians are over the rounds, ratios are medians of those of
the rounds. "bare passes" are ours without cache and loop, with the memory full. ComfyUI's classes need a process where
its folder comes first, which is why the work is in tests/comfyui/scripts/grow.py.
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

from packforcing_core.laboratory.bench.clock import ratio
from packforcing_core.laboratory.bench.subject import EARLY, POSITIONS, SCALES
from packforcing_core.model.config import WanConfig
from tests.checkpoints import wan_state_dict
from tests.comfyui.install import PACK, VARIABLE, comfyui_folder

SCRIPT = PACK / "tests" / "comfyui" / "scripts" / "grow.py"
CONFIG = SCALES["small"].config
OURS, BARE = "packforcing", "bare passes"
RUNS = (OURS, BARE, "window")


def measure(
    positions: list[int],
    rounds: int,
    minutes: float,
    runs: list[str],
    config: WanConfig = CONFIG,
    device: str = "cpu",
) -> dict:
    """{"settings": ..., "samplers": {name: {"seconds": {position: [...]}, "cache_bytes": ...}},
    "compiled_graphs": [... by round]}.

    On a GPU the 1.3B at 832x480 in bf16, with the ComfyUI that the environment names; else `config`.
    """
    environment = {**os.environ, "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        if device == "cpu":
            save_file(wan_state_dict(config), weights)
        numbers = [json.dumps(positions), str(rounds), str(minutes)]
        command = [sys.executable, str(SCRIPT), device, str(weights), *numbers, *runs]
        theirs = comfyui_folder() if device == "cpu" else os.environ[VARIABLE]  # Its models are all that is needed.
        done = subprocess.run(command, cwd=theirs, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(measured: dict) -> dict:
    """Medians of seconds by run and position, each position's over that of block 21, and of ours over the bare passes
    from there on.
    """
    seconds = {name: run["seconds"] for name, run in measured["samplers"].items()}
    result = {"seconds": {n: {p: median(values) for p, values in at.items()} for n, at in seconds.items()}}
    first = str(EARLY) if all(str(EARLY) in at for at in seconds.values()) else next(iter(seconds[OURS]))
    result["growth"] = {n: {p: ratio(values, at[first]) for p, values in at.items()} for n, at in seconds.items()}
    if OURS in seconds and BARE in seconds:
        full = [p for p in seconds[OURS] if int(p) >= EARLY]
        result["loop_overhead"] = {p: ratio(seconds[OURS][p], seconds[BARE][p]) - 1 for p in full}
    return result


def table(measured: dict) -> str:
    numbers = summary(measured)
    positions = list(next(iter(numbers["seconds"].values())))
    head = "".join(f" {p} |" for p in positions) + "".join(f" {p} / {EARLY} |" for p in positions if int(p) > EARLY)
    lines = [f"| CPU seconds a block |{head} cache, MB |", "|---" * (head.count("|") + 2) + "|"]
    for name, run in measured["samplers"].items():
        seconds, growth = numbers["seconds"][name], numbers["growth"][name]
        cells = [f"{seconds[p]:.3f}" for p in positions]
        cells += [f"{growth[p]:.2f}" for p in positions if int(p) > EARLY]
        lines.append(f"| {name} | {' | '.join(cells)} | {run['cache_bytes'] / 1e6:.1f} |")
    if "loop_overhead" in numbers:
        shares = ", ".join(f"{100 * share:.1f}% at {p}" for p, share in numbers["loop_overhead"].items())
        lines += ["", f"loop overhead over bare passes: {shares}"]
    lines += ["", f"compiled graphs after each round: {sorted(set(measured['compiled_graphs']))}"]
    return "\n".join(lines)


def plot(measured: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, run in measured["samplers"].items():
        positions = [int(p) for p in run["seconds"]]
        axes.plot(positions, [median(values) for values in run["seconds"].values()], marker=".", label=name)
    axes.set(xlabel="block", ylabel="CPU seconds a block, median", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=list(POSITIONS), help="from 2 on")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30, help="no round begins later")
    parser.add_argument("--layers", type=int, default=CONFIG.num_layers)
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    config = replace(CONFIG, num_layers=options.layers)
    measured = measure(options.positions, options.rounds, options.minutes, options.runs, config)
    settings = ", ".join(f"{name} {value}" for name, value in measured["settings"].items())
    report = f"{settings}\n\n{table(measured)}\n"
    print(report)
    (options.output / "blocks.md").write_text(report, encoding="utf-8")
    (options.output / "blocks.json").write_text(json.dumps(measured), encoding="utf-8")
    plot(measured, options.output / "blocks.png")


if __name__ == "__main__":
    main()
