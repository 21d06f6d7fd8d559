"""The tables of the toy world's text encoder in a training folder: created once, then only read.

A table for more words would be drawn differently and give old words other vectors. So the tables are weights like the
model's: a training writes them to its folder, and new words get rows after the existing ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...checkpoint.files import open_tensors
from ...errors import PackForcingError
from ...miniature.world import WORDS
from ...text.words import FIRST_WORD, WordEncoder
from . import ranks
from .randomness import step_generator


def word_encoder(path: Path, given: Path | None, dim: int, text_len: int) -> WordEncoder:
    """Returns the encoder with the tables of `path`. If that file does not exist, it is created from `given`, or with
    new tables. All ranks must call it.

    Raises PackForcingError if tables have another size, or if those in `path` differ from `given`.
    """
    encoder = WordEncoder(WORDS, dim, text_len)
    source = path if path.exists() else given
    tables = _extended(_read(source, encoder), encoder) if source else encoder.state_dict()
    if given and source == path:
        _require_beginning(_read(given, encoder), tables, given, path)
    ranks.wait_for_all()  # no rank writes the file while another reads it
    if ranks.rank() == 0 and (source != path or len(_read(path, encoder)["words"]) < len(tables["words"])):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: table.contiguous() for name, table in tables.items()}, f"{path}.part")
        os.replace(f"{path}.part", path)
    ranks.wait_for_all()
    encoder.load_state_dict(tables)
    return encoder.requires_grad_(False).eval()


def _read(path: Path, encoder: WordEncoder) -> dict[str, Tensor]:
    file = open_tensors(path)
    shapes = {name: tuple(info.shape) for name, info in file.tensors.items()}
    expected = tuple(encoder.places.shape), tuple(encoder.words.shape)
    places, words = shapes.get("places"), shapes.get("words", (0, 0))
    if set(shapes) != {"places", "words"} or places != expected[0] or words[1:] != expected[1][1:]:
        raise PackForcingError(
            f"{path} has {shapes}; expected word tables: places {expected[0]} and words {expected[1]}, or fewer "
            "rows of words. Use the text.safetensors from the folder of the model's weights."
        )
    if words[0] > expected[1][0]:
        raise PackForcingError(
            f"{path} has {words[0] - FIRST_WORD} words, and this version's toy world {len(WORDS)}. "
            "Update PackForcing, or choose another folder."
        )
    return {name: tensor.float() for name, tensor in file.load(file.tensors).items()}


def _extended(tables: dict[str, Tensor], encoder: WordEncoder) -> dict[str, Tensor]:
    """Appends a row for every word that the vocabulary has and the tables lack; existing rows stay."""
    new = encoder.vocabulary[len(tables["words"]) - FIRST_WORD :]
    rows = [torch.randn(1, encoder.dim // 2, generator=step_generator(0, "word", word)) for word in new]
    return {**tables, "words": torch.cat((tables["words"], *rows))}


def _require_beginning(given: dict[str, Tensor], tables: dict[str, Tensor], path: Path, own: Path) -> None:
    known = len(given["words"])
    if not (torch.equal(given["places"], tables["places"]) and torch.equal(given["words"], tables["words"][:known])):
        raise PackForcingError(
            f"{own} has other tables than {path}, and a model trained with one cannot use the other. Remove --text to "
            "use the folder's tables, or choose another folder."
        )
