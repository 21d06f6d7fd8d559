"""A measurement as Markdown, and as an image if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import PackForcingError
from ...geometry import GB
from .subject import EARLY


def markdown(result: dict[str, Any]) -> str:
    """Tables for a page. From a CPU only ratios, because its seconds do not apply to other machines."""
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["settings"].items())
    parts = [settings, _ratios(result), _kernels(result)]
    if result["settings"]["device_type"] == "cuda":
        parts.insert(2, _seconds(result))
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratios(result: dict[str, Any]) -> str:
    split = result["split"]
    whole = sum(split.values())
    graphs = result["compiled_graphs"]
    rows = [
        (f"flatness: slowest later block over block {EARLY}", f"{result['flatness']:.3f}"),
        *((f"{name} over block {EARLY}", f"{over:.3f}") for name, over in result["growth"].items()),
        ("loop overhead over bare passes", f"{100 * result['loop_overhead']:.1f}%"),
        ("a 21-frame window's block over ours", f"{result['window_over_ours']:.2f}"),
        *_survival(result),
        *((f"share of a block: {name}", f"{100 * seconds / whole:.1f}%") for name, seconds in split.items()),
        *((f"share of the kernels' rate: {n}", f"{100 * s:.0f}%") for n, s in result["roofline_share"].items()),
        ("bytes the same early and late", "yes" if result["bytes"]["constant"] else "no"),
        ("compiled graphs, before and after the blocks", f"{graphs['before']}, {graphs['after']}"),
    ]
    return _table(("ratio", "value"), rows)


def _survival(result: dict[str, Any]) -> list[tuple[str, str]]:
    if "resume_share" not in result:
        return []
    behind = result["resumed_behind_block"]
    return [
        ("a recorded rollout over the same without a folder", f"{result['recorded_over_bare']:.3f}"),
        (f"resuming after {behind} blocks over sampling them", f"{result['resume_share']:.2f}"),
    ]


def _seconds(result: dict[str, Any]) -> str:
    rows = [(f"FPS, {name}", f"{fps:.1f}") for name, fps in result["fps"].items()]
    rows += [
        (f"block, {name}, median / p95 ms", f"{1e3 * s['median']:.1f} / {1e3 * s['p95']:.1f}")
        for name, s in result["block_seconds"].items()
    ]
    rows += [(f"{name}, ms", f"{1e3 * seconds:.1f}") for name, seconds in result["split"].items()]
    rows += [
        ("first frames after, s", f"{result['first_frame_seconds']:.2f}"),
        ("peak, GB", f"{result['peak_bytes'] / GB:.2f}"),
        ("cache, GB", f"{result['bytes']['cache'] / GB:.2f}"),
    ]
    return _table(("measure", "value"), rows)


def _kernels(result: dict[str, Any]) -> str:
    """Each kernel's speed relative to the slowest of its kind; on a GPU also in TFLOP/s."""
    rows = []
    for kind in ("attention", "conv"):
        rates = result["kernels"][kind]
        slowest = min(rates.values())
        rows += [(f"{kind}: {name}", f"{rate / slowest:.2f}", rate) for name, rate in rates.items()]
    rows.append(("matmul", "1.00", result["kernels"]["matmul"]))
    if result["settings"]["device_type"] != "cuda":
        return _table(("kernel", "over the slowest"), [row[:2] for row in rows])
    return _table(("kernel", "over the slowest", "TFLOP/s"), [(*row[:2], f"{row[2] / 1e12:.0f}") for row in rows])


def plot(result: dict[str, Any], path: Path) -> None:
    """Time of every block, in parts of block 21's median, and the split. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PackForcingError("The plot needs matplotlib: `pip install matplotlib`, or leave --plot out.") from error
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    unit = result["block_seconds"][f"block {EARLY}"]["median"]
    for name, seconds in result["samples"].items():
        left.plot([s / unit for s in seconds], marker=".", label=name)
    left.set(xlabel="round", ylabel=f"time of a block / median of block {EARLY}", ylim=(0, None))
    left.legend()
    split = result["split"]
    whole = sum(split.values())
    right.barh(list(split), [100 * seconds / whole for seconds in split.values()])
    right.set(xlabel="% of a block, decoded in turn")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
