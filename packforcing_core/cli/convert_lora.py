"""Rename a LoRA of a family (LongLive's lora.pt and the like) to what ComfyUI's native LoRA nodes read."""

from __future__ import annotations

import argparse

from ..checkpoint.lora import convert_lora


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="the LoRA (.safetensors, .pt)")
    parser.add_argument("output", help="the .safetensors to write, for models/loras")
    parser.add_argument("--key", help="top-level key to take, for example generator_lora")


def run(options: argparse.Namespace) -> int:
    converted = convert_lora(options.file, options.output, options.key)
    print(f"{options.output}: {converted.tensors} tensors, for {converted.made_for}")
    return 0
