"""Convert a family's own LoRA (such as LongLive's lora.pt) to the layout that ComfyUI's LoRA nodes read."""

from __future__ import annotations

import argparse

from ..checkpoint.load import inspect
from ..checkpoint.lora import convert_lora
from ..checkpoint.merge import open_lora, require_fit
from ..errors import PackForcingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="the LoRA (.safetensors, .pt)")
    parser.add_argument("output", help="the .safetensors to write, for models/loras")
    parser.add_argument("--key", help="top-level key to take, for example generator_lora")
    parser.add_argument("--checkpoint", help="the checkpoint that it is for; an error if no layer matches")


def run(options: argparse.Namespace) -> int:
    if options.checkpoint:
        found = inspect(options.checkpoint)
        if found.config is None:
            raise PackForcingError(f"{found.path.name} is {found.title}, not a Wan transformer. {found.advice}")
        for note in require_fit(open_lora(options.file, options.key), found.config):
            print(f"warning: {note}")
    converted = convert_lora(options.file, options.output, options.key)
    print(f"{options.output}: {converted.tensors} tensors, for {converted.made_for}")
    return 0
