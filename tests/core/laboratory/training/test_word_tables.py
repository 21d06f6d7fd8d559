"""The tables of the little world's text encoder are kept: by the folder, and from shipped weights on."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training import word_tables
from packforcing_core.laboratory.training.word_tables import word_encoder
from packforcing_core.miniature import load as miniature
from packforcing_core.miniature.world import WORDS
from packforcing_core.text.words import WordEncoder

PROMPT = ["a red circle bounces on a dark background"]


def grown(monkeypatch, *more: str) -> None:
    monkeypatch.setattr(word_tables, "WORDS", (*WORDS, *more))


def test_old_words_keep_their_vectors_when_the_vocabulary_grows(tmp_path, monkeypatch):
    path = tmp_path / "text.safetensors"
    before = word_encoder(path, None, 16, 24)(PROMPT)
    grown(monkeypatch, "mauve", "elephant")
    after = word_encoder(path, None, 16, 24)
    redrawn = (WordEncoder((*WORDS, "mauve", "elephant"), 16, 24)(PROMPT) - before).abs().max().item()
    print(f"a table drawn anew would differ by {redrawn:.2f}")
    assert redrawn > 0.1
    assert torch.equal(after(PROMPT), before)
    assert len(load_file(path)["words"]) == len(WORDS) + 4
    new = word_encoder(path, None, 16, 24)(["a mauve elephant"])
    assert torch.equal(new, after(["a mauve elephant"]))
    assert not torch.equal(new, after(["a elephant mauve"]))


def test_a_training_that_begins_with_shipped_tables_says_their_words(tmp_path):
    path, config = tmp_path / "text.safetensors", miniature.read_model().config
    own = word_encoder(path, miniature.TEXT, config.text_dim, config.text_len)
    shipped = miniature.load_text()
    assert torch.equal(own(PROMPT), shipped(PROMPT))
    # Ever after without being told, and no harm in telling again.
    for given in (None, miniature.TEXT):
        assert torch.equal(word_encoder(path, given, config.text_dim, config.text_len)(PROMPT), shipped(PROMPT))


def test_other_tables_than_the_folders_are_refused(tmp_path):
    path, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    word_encoder(path, None, 16, 24)
    save_file({name: table + 1 for name, table in load_file(path).items()}, other)
    with pytest.raises(PackForcingError, match="has other tables than"):
        word_encoder(path, other, 16, 24)
    with pytest.raises(PackForcingError, match="expected word tables"):
        word_encoder(tmp_path / "new.safetensors", miniature.TEXT, 16, 24)
    with pytest.raises(PackForcingError, match="expected word tables"):
        word_encoder(tmp_path / "new.safetensors", miniature.VAE, 16, 24)
