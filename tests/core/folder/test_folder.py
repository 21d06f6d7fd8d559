"""What lies in a render's folder: blocks, fingerprints, telemetry."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from packforcing_core.folder.blocks import BlockStore
from packforcing_core.folder.content import Content, name_of
from packforcing_core.folder.files import FolderError, write_tensors
from packforcing_core.folder.fingerprint import fingerprint
from packforcing_core.folder.folder import open_render
from packforcing_core.folder.manifest import Manifest, Take
from packforcing_core.folder.telemetry import NAME, Telemetry
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.text.script import Script
from tests.small import small_model
from tests.survivor import Small

SHAPE = (1, 16, 3, 4, 6)
PROMPT = "0" * 32
TWO_TAKES = Manifest({}, 10, (Take(0, 1, PROMPT), Take(4, 2, PROMPT)))
RETAKEN = Manifest({}, 10, (Take(0, 1, PROMPT), Take(2, 2, PROMPT)))


def test_a_block_comes_back_bit_for_bit_with_its_selection(tmp_path):
    store, tokens = BlockStore(tmp_path / "blocks", SHAPE), torch.randn(1, 4, 8).bfloat16()
    done = BlockDone(3, torch.randn(SHAPE), False, ((1, 2), ()), tokens, in_flight=torch.randn(SHAPE))
    store.check(RETAKEN)
    store.save(done)
    back = store.load(3)
    assert torch.equal(back.tokens, tokens)
    assert torch.equal(back.latents, done.latents)
    assert torch.equal(back.in_flight, done.in_flight)
    assert (back.block, back.reused, back.selection) == (3, True, ((1, 2), ()))
    store.save(replace(done, sampled_selection=((0, 2), (1,))))
    again = store.load(3)
    assert (again.selection, again.seen) == (((1, 2), ()), ((0, 2), (1,))), "what it saw is not what it wrote with"


def test_blocks_that_are_there_follow_the_takes(tmp_path):
    store = BlockStore(tmp_path / "blocks", SHAPE)
    for block, take in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (6, 1), (12, 1)):
        store.check(replace(TWO_TAKES, takes=TWO_TAKES.takes[: take + 1], blocks=20))
        store.save(BlockDone(block, torch.zeros(SHAPE)))
    again = BlockStore(tmp_path / "blocks", SHAPE)
    again.check(TWO_TAKES)
    assert [block for block in range(10) if again.has(block)] == [0, 1, 2, 3, 4, 6]
    assert again.damaged == []


@pytest.mark.parametrize(
    ("tensors", "plain", "message"),
    [
        ({}, {}, "holds no block"),
        ({"latents": torch.zeros(1, 16, 3, 4, 7)}, {}, "holds no block"),
        ({"latents": torch.zeros(SHAPE).half()}, {}, "holds no block"),
        ({"selected": torch.zeros(3).int(), "selected_by_layer": torch.tensor([1, 1])}, {}, "the block selected"),
        ({"selected": torch.zeros(3).int()}, {}, "the block selected"),
        ({"sampled_selected": torch.zeros(3).int()}, {}, "the block selected"),
        ({}, {"block": 1}, "belongs to another block or render"),
        ({}, {"take": 1}, "belongs to another block or render"),
        ({}, {"render": "0" * 32}, "belongs to another block or render"),
        ({}, {"settings": "0" * 32}, "belongs to another block or render"),
    ],
    ids=str,
)
def test_a_file_that_is_no_block_of_this_render_is_damaged(tmp_path, tensors, plain, message):
    latents = {} if message == "holds no block" else {"latents": torch.zeros(SHAPE)}
    own = {"block": 0, "take": 0, **TWO_TAKES.key(0)}
    write_tensors(tmp_path / "000000-0.safetensors", {**latents, **tensors}, {**own, **plain})
    store = BlockStore(tmp_path, SHAPE)
    store.check(TWO_TAKES)
    assert [file.block for file in store.damaged] == [0]
    with pytest.raises(FolderError, match=message):
        store.load(0)


def test_a_fingerprint_tells_models_apart_and_is_the_same_in_every_process(tmp_path):
    weights = small_model().net.state_dict()
    name = fingerprint(weights)
    assert name == fingerprint({key: value.clone() for key, value in reversed(weights.items())})
    changed = {**weights, "head.head.weight": weights["head.head.weight"] + 1e-3}
    other_seed = small_model(seed=1).net.state_dict()
    half = {key: value.half() for key, value in weights.items()}
    assert len({name, fingerprint(changed), fingerprint(other_seed), fingerprint(half)}) == 4
    assert fingerprint([torch.zeros(2), 1, None, "a", {"b": 1.0}]) == "4a5bfbed21150d55ee56bcf86173c852"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.bool, torch.int64])
def test_any_dtype_has_a_fingerprint(dtype):
    assert fingerprint(torch.ones(1000).to(dtype)) != fingerprint(torch.zeros(1000).to(dtype))


def test_patches_count_by_their_tensors_and_strength():
    class Adapter:
        def __init__(self, weight: float):
            self.weights, self.loaded_keys = (torch.full((3,), weight), None), {"b", "a"}

    assert fingerprint([(0.5, Adapter(1))]) == fingerprint([(0.5, Adapter(1))])
    assert len({fingerprint([(s, Adapter(w))]) for s in (0.5, 0.6) for w in (1, 2)}) == 4


def test_a_torn_line_of_telemetry_costs_that_line_alone(tmp_path):
    telemetry = Telemetry(tmp_path)
    telemetry.append("block", block=0)
    with open(tmp_path / NAME, "ab") as file:
        file.write(b'{"event": "blo')
    telemetry.append("block", block=1)
    assert [line["block"] for line in telemetry.lines()] == [0, 1]


@pytest.mark.parametrize(
    "line", [{}, {"colour": [1, 2], "contrast": 3.0}, {"colour": "red", "contrast": None}], ids=str
)
def test_a_first_block_without_colours_measures_no_drift(tmp_path, line):
    telemetry = Telemetry(tmp_path)
    telemetry.append("film", block=0, **line)
    telemetry.film(5, 0, np.full((4, 8, 8, 3), 100, np.uint8))
    assert list(telemetry.lines())[-1]["drift"] == [0, 0, 0, 0]


def test_drift_is_measured_against_block_0_after_a_resume_too(tmp_path):
    frames = np.full((4, 8, 8, 3), 100, np.uint8)
    Telemetry(tmp_path).film(0, 0, frames)
    Telemetry(tmp_path).film(5, 0, frames + np.uint8(20))
    first, later = Telemetry(tmp_path).lines()
    print(later)
    assert first["drift"] == [0, 0, 0, 0]
    assert later["drift"] == [20, 20, 20, 0]
    assert later["colour"] == [120, 120, 120]


def test_a_render_writes_a_line_for_every_block_with_time_memory_selection_and_drift(tmp_path):
    Small(blocks=6).run(tmp_path)
    lines = list(Telemetry(tmp_path / "film").lines())
    blocks = [line for line in lines if line["event"] == "block"]
    print(blocks[-1])
    assert [line["block"] for line in blocks] == list(range(6))
    assert all(line["seconds"] > 0 for line in blocks)
    assert len(blocks[-1]["selected"][0]) == 2
    assert len([line for line in lines if line["event"] == "film"]) == 6


def test_a_block_that_selects_again_shows_when_it_is_resumed_what_it_saw(tmp_path):
    """As the panel draws it: first from the rollout, then from the file."""
    Small("selects again", blocks=9).run(tmp_path)
    told = [line["selected"] for line in Telemetry(tmp_path / "film").lines() if line["event"] == "block"]
    blocks = Small("selects again", blocks=9).open(tmp_path).blocks
    stored = [blocks.load(block) for block in range(9)]
    assert [[list(choice) for choice in done.seen] for done in stored] == told
    assert any(done.selection and done.seen != done.selection for done in stored)


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    try:
        os.symlink(outside, root / "film", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    with pytest.raises(FolderError, match="is a link out of"):
        Small().open(root)
    assert list(outside.iterdir()) == []


def test_a_prompt_that_was_changed_on_disk_is_refused(tmp_path):
    folder = Small().open(tmp_path)
    (prompt,) = (folder.path / "prompts").glob("*.safetensors")
    raw = bytearray(prompt.read_bytes())
    raw[-1] ^= 1
    prompt.write_bytes(raw)
    with pytest.raises(FolderError, match="is damaged"):
        folder.script(0)
    again = Small().open(tmp_path)
    assert again.notes == ("Note: the stored prompt was damaged and has been written again",)
    again.script(0)
    prompt.write_bytes(raw)
    with pytest.raises(FolderError, match="is damaged"):
        Small(prompt=2).open(tmp_path)


def test_another_version_is_a_note_and_no_refusal(tmp_path):
    folder = Small().open(tmp_path)
    replace(folder.manifest, versions={**folder.manifest.versions, "torch": "1.0"}).write(folder.path)
    (note,) = Small().open(tmp_path).notes
    print(note)
    assert "torch 1.0 ->" in note
    assert "not bit for bit" in note


def test_a_folder_that_vanished_is_made_again_and_one_that_another_changed_is_not_touched(tmp_path):
    context = torch.zeros(1, 2, 3)
    content = Content(Script.of(context))
    wanted = Manifest({"a": 1}, 3, (Take(0, 1, name_of(content.script), content.words),), {})
    folder = open_render(tmp_path, "x", "resume", wanted, content, SHAPE)
    for path in sorted(folder.path.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.path.rmdir()
    folder.path.mkdir()
    folder.ensure()
    assert Manifest.read(folder.path) == wanted
    assert torch.equal(folder.script(0).cues[0].context, context)
    Manifest({"a": 1}, 4, wanted.takes, {}).write(folder.path)
    with pytest.raises(FolderError, match="Another program has changed"):
        folder.ensure()
