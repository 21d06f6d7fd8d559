"""Text embeddings for a Wan transformer: umT5 embeddings of a prompt, zero after its last token."""

from __future__ import annotations

from os import PathLike

import torch
from torch import Tensor

from ..checkpoint.files import open_tensors
from ..errors import PackForcingError
from ..model.config import WanConfig

TEXT_LEN = WanConfig.text_len
TEXT_DIM = WanConfig.text_dim


def pad_context(context: Tensor, text_len: int = TEXT_LEN) -> Tensor:
    """[1, L, text_dim] -> [1, text_len, text_dim], padded with zeros, as in the model's training.

    Raises PackForcingError if L is greater than `text_len`.
    """
    tokens = context.shape[1]
    if tokens > text_len:
        raise PackForcingError(f"Got a context of {tokens} tokens; expected at most {text_len}: shorten the prompt.")
    return torch.nn.functional.pad(context, (0, 0, 0, text_len - tokens))


def check_width(width: int, text_dim: int, source: str) -> None:
    """Raises PackForcingError if text of this width does not fit the transformer."""
    if width != text_dim:
        raise PackForcingError(
            f"Got text embeddings of width {width} from {source}; the transformer needs {text_dim} (4096 is umT5-XXL): "
            "use the text encoder that belongs to the checkpoint."
        )


def load_context(path: str | PathLike[str], text_dim: int = TEXT_DIM) -> Tensor:
    """[1, 512, text_dim] float32 from a safetensors file with `context`, [1, L, text_dim] or [L, text_dim].

    Raises PackForcingError if the tensor is missing, has another shape or dtype, or is not finite.
    """
    file = open_tensors(path)
    if "context" not in file.tensors:
        some = ", ".join(list(file.tensors)[:3]) or "nothing"
        raise PackForcingError(f"{file.path.name} has no tensor called context (it has {some}).")
    context = file.load(["context"])["context"]
    if context.dim() == 2:
        context = context[None]
    if context.dim() != 3 or context.shape[0] != 1 or not context.is_floating_point():
        raise PackForcingError(
            f"Got context of shape {list(context.shape)} and {context.dtype} in {file.path.name}; "
            f"expected [1, tokens, {text_dim}] of floats: one prompt."
        )
    check_width(context.shape[2], text_dim, file.path.name)
    context = context.float()
    if not context.isfinite().all():
        raise PackForcingError(f"{file.path.name} has infinite or NaN values in its context: encode it again.")
    return pad_context(context)
