"""Entry point of the `packforcing` command: one module a subcommand, each with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import PackForcingError
from . import batch, bench, convert_lora, demo, evaluate, inspect, plan, render, study, train

COMMANDS = {
    "render": render,
    "batch": batch,
    "demo": demo,
    "inspect": inspect,
    "plan": plan,
    "evaluate": evaluate,
    "study": study,
    "train": train,
    "bench": bench,
    "convert-lora": convert_lora,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packforcing", description="Minutes of video from block-by-block Wan2.1 models in constant memory."
    )
    parser.add_argument("--version", action="version", version=f"packforcing {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit status: 0 done, 1 an error that the user can mend, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except PackForcingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
