from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from packforcing_core.errors import PackForcingError
from packforcing_core.text.script import Cue, Script


def context(value: float, tokens: int = 4) -> torch.Tensor:
    return torch.full((1, tokens, 8), value)


def texts(script: Script, first: int, end: int) -> list[float]:
    """The value of each block's text."""
    values = []
    for stretch in script.stretches(first, end):
        assert stretch.first == first + len(values)
        values += [round(stretch.context[0, 0, 0].item(), 4)] * (stretch.end - stretch.first)
    return values


def test_a_plain_prompt_is_one_stretch():
    (stretch,) = Script.of(context(1.0)).stretches(3, 9)
    assert (stretch.first, stretch.end, stretch.recache) == (3, 9, False)


def test_a_text_that_comes_back_is_written_and_read(tmp_path):
    again = context(1.0)
    script = Script((Cue(0, again), Cue(2, context(2.0)), Cue(5, again), Cue(7, again.expand(1, 4, 8)[:, :2])))
    save_file(script.tensors(), tmp_path / "prompt.safetensors")
    read = Script.from_tensors(load_file(tmp_path / "prompt.safetensors"))
    assert texts(read, 0, 8) == texts(script, 0, 8) == [1, 1, 2, 2, 2, 1, 1, 1]


def test_each_block_has_the_text_of_the_last_cue_before_it():
    script = Script((Cue(0, context(1)), Cue(2, context(2)), Cue(5, context(3))))
    assert texts(script, 0, 7) == [1, 1, 2, 2, 2, 3, 3]
    assert texts(script, 0, 2) == [1, 1]
    assert texts(script, 4, 6) == [2, 3]


def test_a_blend_goes_in_even_steps_and_ends_before_the_next_prompt():
    script = Script((Cue(0, context(0)), Cue(2, context(4), blend_blocks=3), Cue(8, context(0), blend_blocks=9)))
    assert texts(script, 0, 8) == [0, 0, 1, 2, 3, 4, 4, 4]
    assert texts(script, 7, 18)[-2:] == [pytest.approx(0.4), 0]
    short = Script((Cue(0, context(0)), Cue(2, context(4), blend_blocks=3), Cue(4, context(8))))
    assert texts(short, 0, 6) == [0, 0, 2, 4, 8, 8]


def test_what_a_script_says_of_a_block_does_not_depend_on_the_clip():
    script = Script((Cue(0, context(0)), Cue(2, context(4), blend_blocks=3), Cue(9, context(8), 2)))
    whole = texts(script, 0, 14)
    for end in range(1, 14):
        assert texts(script, 0, end) == whole[:end]
        assert texts(script, end, 14) == whole[end:]


def test_a_recache_comes_once_when_the_new_text_stands_alone():
    script = Script((Cue(0, context(0), recache=True), Cue(2, context(4), 2, recache=True)))
    whole = [stretch.first for stretch in script.stretches(0, 9) if stretch.recache]
    assert whole == [4]
    assert [stretch.first for stretch in script.stretches(4, 9) if stretch.recache] == [4]
    assert not any(stretch.recache for stretch in script.stretches(5, 9))


def test_texts_of_different_length_blend():
    script = Script((Cue(0, context(1, tokens=4)), Cue(1, context(3, tokens=6), 1)))
    mixed = next(script.stretches(1, 2)).context
    assert mixed.shape == (1, 6, 8)
    assert mixed[0, :, 0].tolist() == [2, 2, 2, 2, 1.5, 1.5]


def test_a_script_comes_back_from_its_tensors():
    script = Script((Cue(0, context(1)), Cue(4, context(2), 2, True), Cue(6, context(2), change="cut")))
    again = Script.from_tensors(script.tensors())
    rows = [(cue.first_block, cue.blend_blocks, cue.recache, cue.change) for cue in again.cues]
    assert rows == [(0, 0, False, ""), (4, 2, True, ""), (6, 0, False, "cut")]
    assert all(torch.equal(a.context, b.context) for a, b in zip(script.cues, again.cues, strict=True))


def test_tensors_that_are_no_script_are_refused():
    good = Script((Cue(0, context(1)), Cue(4, context(2)))).tensors()
    for bad in ({}, {**good, "cues": good["cues"].float()}, {k: v for k, v in good.items() if k != "context.1"}):
        with pytest.raises(PackForcingError):
            Script.from_tensors(bad)
    for rows in (
        [[1, 0, 0, 0], [2, 0, 0, 0]],
        [[0, 0, 0, 0]] * 2,
        [[0, 0, 0, 0], [2, -1, 0, 0]],
        [[0] * 4, [2, 0, 0, 3]],
    ):
        with pytest.raises(PackForcingError):
            Script.from_tensors({**good, "cues": torch.tensor(rows)})


def test_a_cut_is_made_at_once_and_only_where_the_rollout_passes_it():
    script = Script((Cue(0, context(0)), Cue(2, context(4), blend_blocks=3, change="cut")))
    assert [(s.first, s.change) for s in script.stretches(0, 9)] == [(0, ""), (2, "cut")]
    assert [(s.first, s.change) for s in script.stretches(2, 9)] == [(2, "cut")]
    assert [(s.first, s.change) for s in script.stretches(3, 9)] == [(3, "")]
    with pytest.raises(PackForcingError, match="has a flush"):
        Script((Cue(0, context(0), change="flush"),))
