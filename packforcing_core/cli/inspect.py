"""Show what a checkpoint file is, how it would be sampled, and what to do with it."""

from __future__ import annotations

import argparse
import json

from ..checkpoint.families import DEFAULT_FAMILY
from ..checkpoint.kinds import size_name
from ..checkpoint.load import Inspection, inspect
from ..compressor.weights import described
from ..errors import PackForcingError
from ..geometry import GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .safetensors, .pt or .pth file")
    parser.add_argument("--key", help="top-level key of a training save, for example generator_ema")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    found = inspect(options.file, options.key)
    rows = dict(_rows(found))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        width = max(map(len, rows))
        for name, value in rows.items():
            for line in value if isinstance(value, list) else [value]:
                print(f"{name:<{width}}  {line}")
    return 0 if not found.problems else 1


def _rows(found: Inspection):
    yield "file", str(found.path)
    yield "kind", found.kind
    yield "what", found.title
    yield "size", f"{found.file_bytes / GB:.3g} GB, {found.parameters:,} parameters"
    yield "dtypes", ", ".join(f"{name}: {count:,}" for name, count in found.dtypes.items())
    if found.config is not None:
        c = found.config
        sizes = f"width {c.dim}, {c.num_layers} layers, {c.num_heads} heads, feed-forward {c.ffn_dim}"
        yield "transformer", f"Wan2.1 {size_name(c)}: {sizes}"
    if found.taken is not None:
        yield "taken from", found.taken or "the top of the file"
    if found.family is not None:
        yield "preset", f"{found.family.name} ({found.family.sampling})"
    elif found.taken is not None:
        yield "preset", f"unknown: sampled as {DEFAULT_FAMILY.name} ({DEFAULT_FAMILY.sampling})"
    if found.how:
        yield "known by", list(found.how)
    if found.kind == "compressor":
        yield from _compressor_rows(found)
    for name, lines in (("problem", found.problems), ("warning", found.warnings)):
        if lines:
            yield name, list(lines)
    yield "advice", found.advice


def _compressor_rows(found: Inspection):
    try:
        yield from described(found.path)
    except PackForcingError as error:  # A compressor of another project.
        yield "problem", str(error)
