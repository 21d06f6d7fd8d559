"""Measure how fast this machine renders: time per block early and late, its parts, kernels, memory (random weights)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console

from ...attention import BACKENDS
from ...devices import DTYPES, usable_device
from ...errors import PackForcingError
from ..bench.protocol import measure
from ..bench.report import markdown, plot
from ..bench.subject import POSITIONS, SCALES, TWO_MINUTES, Plan

# Rounds of blocks and repeats of a kernel. A CPU's are more: there only ratios count, and they are noisy.
QUICK, WHOLE, WHOLE_ON_CPU = (4, 5), (30, 20), (50, 20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few blocks only: well under a minute on a CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", help="a folder for bench.md and bench.json")
    parser.add_argument("--plot", action="store_true", help="also bench.png in --output; needs matplotlib")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: bf16 on a GPU, else fp32")
    parser.add_argument(
        "--scale",
        choices=("auto", *SCALES),
        default="auto",
        help="auto: 1.3B on a GPU, small on a CPU, quick (half the layers) with --quick",
    )
    parser.add_argument(
        "--attention", choices=("auto", *BACKENDS), default="auto", help="the transformer's attention backend"
    )
    parser.add_argument("--compile", action="store_true", help="run the layers through torch.compile")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with 1, other programs disturb the least")
    parser.add_argument("--rounds", type=int, help="blocks per stream; default: 30, on a CPU 50, with --quick 4")


def run(options: argparse.Namespace) -> int:
    plan = _plan(options)
    if options.plot and not options.output:
        raise PackForcingError("--plot needs --output, the folder for the image.")
    console = Console(stderr=True)
    result = measure(plan, lambda what: console.print(f"measuring: {what}"))
    if options.output:
        _write(result, Path(options.output), options.plot)
    print(json.dumps(result, indent=2) if options.json else markdown(result))
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    if options.threads < 1:
        raise PackForcingError(f"--threads is {options.threads}; expected 1 or more.")
    device = usable_device(options.device)
    cuda = device.type == "cuda"
    if not cuda:
        torch.set_num_threads(options.threads)
    dtype = DTYPES["bf16" if cuda else "fp32"] if options.dtype == "auto" else DTYPES[options.dtype]
    scale = "1.3B" if cuda else "quick" if options.quick else "small"
    if options.scale != "auto":
        scale = options.scale
    rounds, repeats = QUICK if options.quick else WHOLE if cuda else WHOLE_ON_CPU
    positions = TWO_MINUTES if cuda or options.quick else POSITIONS
    if options.rounds is not None:
        if options.rounds < 1:
            raise PackForcingError(f"--rounds is {options.rounds}; expected 1 or more.")
        rounds = options.rounds
    return Plan(SCALES[scale], device, dtype, rounds, repeats, positions, options.attention, options.compile)


def _write(result: dict, folder: Path, picture: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(result), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    if picture:
        plot(result, folder / "bench.png")
