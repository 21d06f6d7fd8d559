"""A text encoder for a small vocabulary. Each word has a fixed vector, changed by its position and the word before it.

Cross-attention has no positions, so "a red circle and a blue square" would equal its swap. A word's vector therefore
also encodes its position and the word before it, as the states of a large encoder do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import PackForcingError

WORD = re.compile(r"[a-z]+")
EMPTY = "Warning: this prompt is empty, so the video may show anything, or nothing."
WEIGHT = re.compile(r"\([^()]*:\s*[-+]?[\d.]+\s*\)")
"""A weight as ComfyUI writes it: (red:1.2)."""
NO_WEIGHTS = "Warning: weights such as (red:1.2) have no effect in the miniature."
UNKNOWN = 0
"""The row for words outside the vocabulary; the next row stands before the first word."""
START = 1
FIRST_WORD = 2
"""The row of the first word in the vocabulary."""


class WordEncoder(nn.Module):
    """Prompts to [B, text_len, dim], zeros after the last word. The tables are fixed and saved with the weights."""

    words: Tensor
    places: Tensor

    def __init__(self, vocabulary: Sequence[str], dim: int = 128, text_len: int = 24, seed: int = 0):
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self.dim, self.text_len = dim, text_len
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("words", torch.randn(FIRST_WORD + len(self.vocabulary), dim // 2, generator=generator))
        self.register_buffer("places", 0.5 * torch.randn(text_len, dim, generator=generator))
        self._rows = {word: row for row, word in enumerate(self.vocabulary, start=FIRST_WORD)}

    def rows(self, prompt: str) -> list[int]:
        """The row of `words` for each word. Raises PackForcingError for a prompt that is too long."""
        words = WORD.findall(prompt.lower())
        if len(words) > self.text_len:
            raise PackForcingError(
                f"The prompt has {len(words)} words; the miniature's text encoder takes at most {self.text_len}."
            )
        return [self._rows.get(word, UNKNOWN) for word in words]

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that are not in the vocabulary."""
        return [word for word in WORD.findall(prompt.lower()) if word not in self._rows]

    @staticmethod
    def weighted(prompt: str) -> bool:
        """Whether a prompt weighs words, as in (red:1.2), which this encoder does not read."""
        return WEIGHT.search(prompt) is not None

    def forward(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self.encode(self.rows(prompt)) for prompt in prompts])

    def encode(self, rows: Sequence[int]) -> Tensor:
        """[text_len, dim] for a prompt given as `rows`."""
        context = self.places.new_zeros(self.text_len, self.dim)
        if rows:
            pairs = torch.cat((self.words[list(rows)], self.words[[START, *rows[:-1]]]), dim=1)
            context[: len(rows)] = pairs + self.places[: len(rows)]
        return context
