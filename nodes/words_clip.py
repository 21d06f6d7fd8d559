"""The miniature's text encoder as a native CLIP, for every node that encodes text."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..packforcing_core.text.words import EMPTY, NO_WEIGHTS, WordEncoder
from .tell import note

KIND = "packforcing_words"


def words_clip(words: WordEncoder) -> comfy.sd.CLIP:
    """A CLIP that holds `words`. A prompt with too many words raises PackForcingError when it is tokenized."""
    target = comfy.supported_models_base.ClipTarget(lambda **_: _Tokenizer(words), lambda **_: _TextModel(words))
    return comfy.sd.CLIP(target, parameters=sum(buffer.numel() for buffer in words.buffers()))


class _Tokenizer:
    """The tokenizer interface of a CLIP: one token per word. Weights such as (red:1.2) have no effect here."""

    def __init__(self, words: WordEncoder):
        self._words = words

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_) -> dict[str, list[list[tuple]]]:
        self._tell(text, self._words.unknown(text))
        rows = self._words.rows(text)
        return {KIND: [[(row, 1.0, place) if return_word_ids else (row, 1.0) for place, row in enumerate(rows, 1)]]}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def _tell(self, text: str, unknown: list[str]) -> None:
        """Reports an empty text, unknown words or weights in the log and on the node that encodes the text; replaces
        the report of an earlier text.
        """
        lines: tuple[str, ...] = ()
        if unknown:
            words = ", ".join(unknown)
            warning = f"Warning: the PackForcing miniature does not know these words and ignores them: {words}."
            lines = (warning, "Demo Models lists those that it knows.")
        elif not text.strip():
            lines = (EMPTY,)
        if self._words.weighted(text):
            lines = (*lines, NO_WEIGHTS)
        if lines:
            logging.warning("%s", " ".join(lines))
        context = get_executing_context()
        if context is not None:
            note(context.node_id, *lines)


class _TextModel(torch.nn.Module):
    """The text model interface of a CLIP: tokens to embeddings."""

    disable_offload = True

    def __init__(self, words: WordEncoder):
        super().__init__()
        self.words = words
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Options such as a layer to stop at have no effect: there is one layer."""

    def reset_clip_options(self) -> None:
        """See `set_clip_options`."""

    def encode_token_weights(self, tokens: dict[str, list[list[tuple]]]) -> tuple[Tensor, None]:
        """([1, text_len, dim], None): no pooled embedding."""
        contexts = [self.words.encode([pair[0] for pair in pairs]) for pairs in tokens[KIND]]
        return torch.stack(contexts).to(comfy.model_management.intermediate_device()), None

    def load_sd(self, state_dict: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        return self.words.load_state_dict(state_dict, strict=False)
