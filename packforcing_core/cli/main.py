"""Entry point of the `packforcing` command: one module per subcommand, each with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType

from .. import __path__ as package_path
from .. import __version__
from ..errors import PackForcingError
from . import batch, convert_lora, demo, inspect, plan, render, renders

PRODUCT = {
    "render": render,
    "renders": renders,
    "batch": batch,
    "demo": demo,
    "inspect": inspect,
    "plan": plan,
    "convert-lora": convert_lora,
}
LABORATORY = ("evaluate", "study", "train", "bench")
"""Subcommands of the laboratory, which the ComfyUI archive leaves out."""


def commands() -> dict[str, ModuleType]:
    """The subcommands of this installation."""
    found = dict(PRODUCT)
    laboratory = f"{__package__.rpartition('.')[0]}.laboratory"
    # Only in this very package: an editable installation of another copy would supply its own.
    if PathFinder.find_spec(laboratory, package_path) is not None:
        found.update({name: import_module(f"{laboratory}.cli.{name}") for name in LABORATORY})
    return found


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help if the option has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, [], {}) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packforcing",
        description="Long videos from autoregressive (block-by-block) Wan2.1 models, in VRAM that does not grow with "
        "their length.",
    )
    parser.add_argument("--version", action="version", version=f"packforcing {__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in commands().items():
        summary = (module.__doc__ or name).splitlines()[0]
        command = choices.add_parser(name, help=summary, description=summary, formatter_class=Help)
        module.add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit status: 0 done, 1 an error that the user can fix, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        return commands()[options.command].run(options)
    except PackForcingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
