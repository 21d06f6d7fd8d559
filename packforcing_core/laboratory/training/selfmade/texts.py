"""The text embeddings of all prompts, computed before the model is loaded, so that a large text encoder and the model
are not in memory together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ....errors import PackForcingError
from ....text.context import pad_context

EncodePrompts = Callable[[Sequence[str]], Sequence[Tensor]]
"""From prompts to a context [1, text_len, text_dim] each, zero after the prompt's tokens."""


class Texts:
    """The contexts stored in a file, read on demand: `texts([prompt, ...])` returns [B, text_len, text_dim]."""

    def __init__(self, path: Path):
        self._path = path
        with safe_open(path, "pt") as file:
            told = file.metadata()
        self._rows = {prompt: row for row, prompt in enumerate(json.loads(told["prompts"]))}
        self.text_len = int(told["text_len"])

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        with safe_open(self._path, "pt") as file:
            found = [file.get_tensor(str(self._rows[prompt])) for prompt in prompts]
        return torch.cat([pad_context(context.float()[None], self.text_len) for context in found])

    def knows(self, prompts: Sequence[str]) -> bool:
        return set(prompts) <= set(self._rows)


def encoded_texts(path: Path, prompts: Sequence[str], encode: EncodePrompts) -> Texts:
    """Returns the contexts of `prompts`: those in `path` if an earlier run wrote it, else computed and written to it.
    Raises PackForcingError if the file is of other prompts. An incomplete file is never left.
    """
    distinct = list(dict.fromkeys(prompts))
    if path.exists():
        texts = Texts(path)
        if not texts.knows(distinct):
            raise PackForcingError(
                f"{path} was made for other prompts. Continue with the same --prompts, or choose another --folder."
            )
        return texts
    contexts = encode(distinct)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {str(row): _without_padding(context[0]) for row, context in enumerate(contexts)}
    metadata = {"prompts": json.dumps(distinct), "text_len": str(contexts[0].shape[1])}
    save_file(tensors, f"{path}.part", metadata)
    os.replace(f"{path}.part", path)
    return Texts(path)


def _without_padding(context: Tensor) -> Tensor:
    """Returns [L, text_dim] up to the last nonzero row; bfloat16 stays, any other dtype becomes float32."""
    used = context.abs().sum(dim=1).nonzero()
    last = int(used[-1]) + 1 if len(used) else 1
    kept = context[:last].cpu()
    return (kept if kept.dtype == torch.bfloat16 else kept.float()).contiguous()
