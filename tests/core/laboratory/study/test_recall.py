"""Questions ask of the memory between sink and recent frames, and their answers are read for what they show."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from packforcing_core.geometry import pixel_frames
from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.promise import parse_prompt
from packforcing_core.laboratory.evaluation.little_world.truth import truth_at
from packforcing_core.laboratory.study.answers import (
    Answers,
    Replayed,
    answer,
    found,
    given_by,
    made_blocks,
    shortened,
    told_selection,
)
from packforcing_core.laboratory.study.recall import AWAY, MADE_BLOCKS, Question, drawn, recalled
from packforcing_core.laboratory.study.rows import FRAMES_PER_BLOCK, SINK, TRAINED, Row
from packforcing_core.laboratory.study.subject import video_frames
from packforcing_core.miniature.world import COLOURS, FPS
from packforcing_core.sampler.start import Start
from packforcing_core.vae.streaming import StreamingDecoder
from tests.core.laboratory.study.small_study import ROWS, load_small
from tests.small import CONFIG

QUESTIONS = [Question(seed, away) for seed in range(12) for away in AWAY]


def begin(question: Question) -> int:
    return first_frame(question.block)


def first_frame(block: int) -> int:
    return pixel_frames(block * FRAMES_PER_BLOCK)


def made(question: Question, **changes) -> np.ndarray:
    """What a perfect memory would make; with changes to the thing, what another would."""
    [thing] = question.scene.things
    scene = replace(question.scene, things=(replace(thing, **changes),))
    return draw(scene, begin(question) + 4 * MADE_BLOCKS * FRAMES_PER_BLOCK)[begin(question) :]


def test_only_the_mid_has_seen_the_thing():
    gone = []
    for question in QUESTIONS:
        first, end = begin(question), begin(question) + 4 * MADE_BLOCKS * FRAMES_PER_BLOCK
        seen = [truth_at(question.scene, frame)[0].area > 0 for frame in range(end)]
        sink = drawn(question)[:, :, : pixel_frames(SINK)]
        assert torch.equal(sink, sink[:, :, :1, :1, :1].expand_as(sink))  # nothing but background
        assert not seen[pixel_frames(SINK)]
        assert sum(seen[pixel_frames(SINK) : first]) > 48
        left = first - max(frame for frame in range(first) if seen[frame])
        gone.append(left - AWAY[question.away])
        assert left > 4 * TRAINED.policy.recent_frames
        assert any(seen[first : first + 4 * FRAMES_PER_BLOCK])
    print(f"out of sight {min(gone)} to {max(gone)} frames longer than asked, since corners count")
    assert 0 <= min(gone) <= max(gone) < 16


def test_the_newest_compressed_blocks_show_it_soon_and_not_late():
    policy = TRAINED.policy
    for question in QUESTIONS:
        recent = question.block - policy.recent_frames // FRAMES_PER_BLOCK
        frames = range(first_frame(recent - policy.top_k_blocks), first_frame(recent))
        shown = any(truth_at(question.scene, frame)[0].share > 0.9 for frame in frames)
        assert shown == (question.away == "soon")


def test_the_prompt_keeps_the_colour_for_itself():
    for question in QUESTIONS:
        [thing] = parse_prompt(question.prompt).things
        assert thing.colour is None
        assert thing.shape is None
    assert len({question.scene.things[0].colour for question in QUESTIONS}) > 2


def test_what_comes_before_is_drawn_up_to_the_block():
    question = QUESTIONS[0]
    assert drawn(question).shape == (1, 3, begin(question), 64, 128)
    assert question.block * FRAMES_PER_BLOCK == (begin(question) + 3) // 4


@pytest.mark.parametrize("away", AWAY)
def test_answers_are_read(away: str):
    for question in (question for question in QUESTIONS if question.away == away):
        [thing] = question.scene.things
        other = next(colour for colour in COLOURS if colour != thing.colour)
        assert recalled(question, made(question)) == {"recall": 1.0, "back": 1.0}
        assert recalled(question, made(question, colour=other)) == {"recall": 0.0, "back": 1.0}
        far = replace(thing.x, low=-500.0, high=-400.0)
        assert recalled(question, made(question, x=far)) == {"recall": 0.0, "back": 0.0}


@pytest.mark.integration
def test_every_kind_of_row_answers():
    subject, question = load_small(), QUESTIONS[0]
    answers = Answers(subject)
    for row in ROWS:
        selects = {"found", "hit"} if row.branches else set()
        assert set(answers.to(question, row)) == {"recall", "back", *selects}


@pytest.mark.integration
def test_an_oracle_is_told_what_shows_the_thing():
    """The small memory sees two compressed blocks: one that shows the thing, and one that does not."""
    subject, question = load_small(), QUESTIONS[1]
    given = given_by(subject, question)
    row = replace(ROWS[-1], oracle="selected")
    blocks = question.block + MADE_BLOCKS
    recipe = subject.recipe(row, question.seed, pixel_frames(blocks * FRAMES_PER_BLOCK) / FPS)
    recipe = replace(recipe, start=Start(given=given.latents))
    told = partial(told_selection, question)
    made = list(made_blocks(subject, row, question.prompt, recipe, Replayed(given), question.block, told))
    newest = question.block - 2  # the newest that has left the recent frames, and shows nothing of it
    assert [done.selection for done in made] == [((question.whole, newest + i),) * CONFIG.num_layers for i in (0, 1)]
    assert answer(subject, row, question, given)["found"] == 1.0
    assert answer(subject, row, question, given)["hit"] == 0.5


@pytest.mark.integration
def test_an_oracle_sees_one_block_whole():
    subject, question = load_small(), QUESTIONS[1]
    given = given_by(subject, question)
    short = shortened(given, (0, question.whole))
    assert torch.equal(short.latents[:, :, 4:], given.latents[:, :, 4 * question.whole : 4 * question.whole + 4])
    assert set(answer(subject, replace(ROWS[0], oracle="whole"), question, given)) == {"recall", "back"}


def test_what_shows_the_thing_is_known():
    for question in QUESTIONS:
        sink = SINK // FRAMES_PER_BLOCK
        assert question.showing[0] >= sink
        assert question.whole in question.showing
        assert question.showing[-1] < question.block - 1
        first = first_frame(question.whole)
        shown = [truth_at(question.scene, f)[0].area for f in range(first, first + 4 * FRAMES_PER_BLOCK)]
        assert np.mean(shown) > 0.98 * max(shown)


def test_what_was_selected_is_read_layer_by_layer():
    question = QUESTIONS[1]
    right, wrong = question.whole, question.block - 1
    assert found(question, ((right, wrong), (wrong,), (right,))) == {"found": 2 / 3, "hit": 0.5}
    assert found(question, ((), ())) == {}


def test_an_oracle_selects_the_newest_sighting_and_what_says_how_long_ago_it_was():
    question = QUESTIONS[1]
    bank = list(range(2, question.block - 1))
    told = told_selection(question, bank, 4)
    assert told == (question.whole, *bank[-3:])
    assert not set(told[1:]) & set(question.showing)
    # Where too few show nothing, others that show it fill the places.
    assert len(told_selection(question, question.showing, 3)) == 3


@pytest.mark.integration
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_kept_of_a_question_changes_no_frame(row: Row):
    """The slow twin: everything decoded again."""
    subject, question = load_small(), QUESTIONS[0]
    given = given_by(subject, question)
    blocks = question.block + MADE_BLOCKS
    recipe = subject.recipe(row, question.seed, pixel_frames(blocks * FRAMES_PER_BLOCK) / FPS)
    recipe = replace(recipe, start=Start(given=given.latents))
    kept = video_frames(subject, row, question.prompt, recipe, Replayed(given))
    again = video_frames(subject, row, question.prompt, recipe, StreamingDecoder(subject.vae))
    print(f"largest difference {np.abs(kept.astype(int) - again).max()}")
    assert len(kept) == pixel_frames(blocks * FRAMES_PER_BLOCK)
    assert np.array_equal(kept, again)
