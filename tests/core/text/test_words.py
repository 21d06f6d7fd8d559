"""The miniature's text encoder: words, their order, and what it does not know."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.scene import KINDS, sample_scene
from packforcing_core.miniature.world import WORDS
from packforcing_core.text.words import WordEncoder


def distance(first: str, second: str) -> float:
    a, b = WordEncoder(WORDS)([first, second])
    return (a - b).abs().max().item()


def test_words_their_order_and_nothing_else_count():
    plain = "a red circle and a blue square bounce"
    assert distance(plain, "A red  circle, and a blue square bounce.") == 0
    assert distance(plain, "a blue circle and a red square bounce") > 0.5
    assert distance(plain, "a red square and a blue circle bounce") > 0.5


def test_what_is_behind_the_last_word_is_zero_and_an_empty_prompt_is_all_zero():
    context = WordEncoder(WORDS, dim=32, text_len=9)(["a red circle", ""])
    assert context.shape == (2, 9, 32)
    assert context[0, :3].abs().amax(1).min() > 0
    assert not context[0, 3:].any()
    assert not context[1].any()


def test_the_tables_come_from_the_seed_and_grow_at_the_end():
    short, long = WordEncoder(WORDS), WordEncoder((*WORDS, "new"))
    assert torch.equal(short.words, WordEncoder(WORDS).words)
    assert not torch.equal(short.words, WordEncoder(WORDS, seed=1).words)
    assert short.rows("a red circle") == long.rows("a red circle")


def test_every_prompt_of_the_little_world_is_known_and_fits():
    encoder = WordEncoder(WORDS)
    prompts = {describe(sample_scene(np.random.default_rng(seed), kind)) for kind in KINDS for seed in range(30)}
    assert all(encoder.unknown(prompt) == [] for prompt in prompts)
    assert max(len(encoder.rows(prompt)) for prompt in prompts) <= encoder.text_len
    assert encoder.unknown("a red dragon") == ["dragon"]


def test_weights_count_for_nothing_and_are_found():
    assert distance("a (red:1.2) circle", "a red circle") == 0
    for weighted in ("a (red:1.2) circle", "a (red circle : .5)", "(a (red:1.1) circle)", "a (red:-1) circle"):
        assert WordEncoder.weighted(weighted), weighted
    for plain in ("a red circle", "a (red) circle", "at 1:2 (left)", "[0s] a red circle [1.5s] a circle (red: left)"):
        assert not WordEncoder.weighted(plain), plain


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(PackForcingError, match="takes at most 3"):
        WordEncoder(WORDS, text_len=3)(["a red circle bounces"])
