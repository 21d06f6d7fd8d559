"""Everything that is worth a few minutes of a GPU, most worth first, in one command.

    python -m tests.gpu --minutes 8 --out FOLDER [--device cpu --tiny]

Each part runs in a process of its own with a time limit, and writes FOLDER/PART.json when it ends; FOLDER/report.md is
written anew after every part, so that a run that is cut off leaves what it measured. On a CPU with --tiny it is a
rehearsal: every line of it runs, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.gpu.parts import PARTS

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="no part begins later, and the last is cut off there")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few numbers, for a rehearsal")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end, done = time.monotonic() + 60 * options.minutes, {}
    for name in options.only:
        left = end - time.monotonic()
        if left < 5:
            done[name] = "no time was left"
        else:
            limit = PARTS[name].seconds if options.device.startswith("cuda") else left  # A rehearsal is slow.
            done[name] = _run(name, options, min(left, limit))
        report = _report(done, options)
        (options.out / "report.md").write_text(report, encoding="utf-8")
        print(f"{name}: {done[name]}", flush=True)
        if done[name].startswith("cut off") and not (options.out / f"{name}.json").exists():
            print("It had found nothing by then, so the next parts would hang, too: see the end of its log.")
            break
    print(report)
    return 0 if all(state == "ended" for state in done.values()) else 1


def _run(name: str, options: argparse.Namespace, seconds: float) -> str:
    results = options.out / f"{name}.json"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu.parts", name, str(options.out.resolve()), options.device]
    with (options.out / f"{name}.log").open("w", encoding="utf-8") as log:
        part = subprocess.Popen(
            [*command, *(["--tiny"] if options.tiny else [])], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = part.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            part.send_signal(signal.SIGABRT)  # It writes where it is.
            with suppress(subprocess.TimeoutExpired):
                part.wait(timeout=5)
            part.kill()
            return f"cut off after {seconds:.0f} s"
    return "ended" if code == 0 else f"failed ({code}), see {name}.log"


def _report(done: dict[str, str], options: argparse.Namespace) -> str:
    title = "# Rehearsal on a CPU: nothing here is a measurement" if options.device == "cpu" else "# On a GPU"
    lines = [title, ""]
    for name, state in done.items():
        lines += [f"## {name}: {PARTS[name].title}", "", f"{state}.", ""]
        result = options.out / f"{name}.json"
        if result.exists():
            lines += ["| what | value |", "|---|---|"]
            lines += [f"| {what} | {value} |" for what, value in json.loads(result.read_text("utf-8")).items()]
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
