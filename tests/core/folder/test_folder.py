"""What lies in a render's folder: blocks, states, fingerprints, telemetry."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from packforcing_core.folder.blocks import BlockStore, StateStore
from packforcing_core.folder.files import FolderError, write_tensors
from packforcing_core.folder.fingerprint import fingerprint
from packforcing_core.folder.folder import open_render, prompt_take
from packforcing_core.folder.manifest import Manifest, Take
from packforcing_core.folder.telemetry import NAME, Telemetry
from packforcing_core.sampler.rollout import BlockDone
from tests.small import small_model
from tests.survivor import Small

SHAPE = (1, 16, 3, 4, 6)
PROMPT = "0" * 32
TWO_TAKES = Manifest({}, 10, (Take(0, 1, PROMPT), Take(4, 2, PROMPT)))


def test_a_block_comes_back_bit_for_bit_with_its_selection(tmp_path):
    store = BlockStore(tmp_path / "blocks", SHAPE)
    done = BlockDone(3, torch.randn(SHAPE), False, ((1, 2), ()), in_flight=torch.randn(SHAPE))
    store.save(done, take=1)
    back = store.load(3, 1)
    assert torch.equal(back.latents, done.latents)
    assert torch.equal(back.in_flight, done.in_flight)
    assert (back.block, back.reused, back.selection) == (3, True, ((1, 2), ()))


def test_known_blocks_end_at_the_first_gap_and_follow_the_takes(tmp_path):
    store = BlockStore(tmp_path / "blocks", SHAPE)
    for block, take in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (6, 1)):
        store.save(BlockDone(block, torch.zeros(SHAPE)), take)
    assert store.known(TWO_TAKES) == 5


@pytest.mark.parametrize("selection", [[1], "ab", {"a": 1}, [["x"]], [[1.5]], None])
def test_a_selection_that_is_none_is_refused(tmp_path, selection):
    write_tensors(tmp_path / "000000-0.safetensors", {"latents": torch.zeros(SHAPE)}, selection)
    with pytest.raises(FolderError, match="what the block had selected"):
        BlockStore(tmp_path, SHAPE).load(0, 0)


@pytest.mark.parametrize("shape", [(1, 16, 3, 4, 7), (2, 16, 3, 4, 6)])
def test_a_block_of_another_render_is_refused(tmp_path, shape):
    BlockStore(tmp_path, shape).save(BlockDone(0, torch.zeros(shape)), 0)
    with pytest.raises(FolderError, match="holds no block of this render"):
        BlockStore(tmp_path, SHAPE).load(0, 0)


def test_the_oldest_states_are_dropped_and_those_of_another_take_are_not_used(tmp_path):
    store = StateStore(tmp_path, kept=3)
    for block, take in ((2, 0), (4, 0), (6, 0), (6, 1)):
        store.save(block, take, {"a": torch.tensor([block, take])})
    (tmp_path / "notes.txt").touch()
    assert sorted(path.name[:8] for path in tmp_path.glob("*.safetensors")) == ["000004-0", "000006-0", "000006-1"]
    assert [(file.block, file.take) for file in store.of_takes(TWO_TAKES, 10)] == [(6, 1), (4, 0)]
    assert [block for block, _, _ in store.readable(TWO_TAKES, 5)] == [4]


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


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    try:
        os.symlink(outside, root / "film", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    with pytest.raises(FolderError, match="leads out of"):
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


def test_another_version_is_a_note_and_no_refusal(tmp_path):
    folder = Small().open(tmp_path)
    path = folder.path / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(content), encoding="utf-8")
    (note,) = Small().open(tmp_path).notes
    print(note)
    assert "torch 1.0 ->" in note
    assert "not bit for bit" in note


def test_a_folder_that_vanished_is_made_again_and_one_that_another_changed_is_not_touched(tmp_path):
    context = torch.zeros(1, 2, 3)
    wanted = Manifest({"a": 1}, 3, (prompt_take(1, context),), {})
    folder = open_render(tmp_path, "x", "resume", wanted, context, SHAPE)
    for path in sorted(folder.path.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.path.rmdir()
    folder.path.mkdir()
    folder.ensure(context)
    assert Manifest.read(folder.path) == wanted
    assert torch.equal(folder.script(0).cues[0].context, context)
    Manifest({"a": 1}, 4, wanted.takes, {}).write(folder.path)
    with pytest.raises(FolderError, match="Another program has changed"):
        folder.ensure(context)
