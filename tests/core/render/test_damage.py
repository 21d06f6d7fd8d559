"""Files of a render that are torn, zeroed, changed, swapped or gone: noticed, told, made again; the rest is kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packforcing_core.folder.files import FolderError
from packforcing_core.render.writing import WrittenBlock
from packforcing_core.sampler.denoising import BlockDone
from tests.survivor import Small, difference, frames

pytestmark = pytest.mark.integration

SMALL = Small(blocks=6)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 3 // 4 :] = bytes(len(raw) - len(raw) * 3 // 4)
    path.write_bytes(raw)


def changed(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 4 // 5] ^= 1
    path.write_bytes(raw)


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [torn, zeroed, changed, gone, emptied]
FILES = {
    "a block": "blocks/000003-0.safetensors",
    "the manifest": "manifest.json",
    "the prompt": "prompts/*.safetensors",
    "the video": "film/*.growing.mp4",
    "the checksums": "film/*.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    SMALL.run(root)
    return root


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished render, elsewhere."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def made_again(root: Path, finished: Path, small: Small = SMALL) -> tuple[list[int], tuple[str, ...]]:
    """The blocks that are sampled again, and what is told; the video must be the same."""
    (root / "film.mp4").unlink()
    notes = small.open(root).notes
    events = small.run(root)
    print(notes)
    assert difference(frames(root), frames(finished)) == 0
    return [event.block for event in events if isinstance(event, BlockDone) and not event.reused], notes


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("what", FILES)
def test_damage_is_noticed_and_made_again_and_the_rest_is_kept(copied, finished, what: str, damage: Callable):
    (path,) = (copied / "film").glob(FILES[what])
    damage(path)
    made, notes = made_again(copied, finished)
    assert made == ([3] if what == "a block" else [])
    if what == "a block":
        assert bool(notes) == (damage is not gone), "a block that is not there is simply made"
        assert not notes or "block 3" in notes[0]
    elif what in ("the manifest", "the prompt"):
        assert "written again" in notes[0]
    assert made_again(copied, finished) == ([], ())


def test_a_prompt_in_the_place_of_a_block_is_no_block(copied, finished):
    (prompt,) = (copied / "film/prompts").glob("*.safetensors")
    shutil.copy(prompt, copied / "film/blocks/000003-0.safetensors")
    (copied / "film/manifest.json").unlink()
    made, notes = made_again(copied, finished)
    assert made == [3]
    assert "written again" in notes[0]


def test_a_checksum_with_an_end_before_the_start_counts_for_nothing(copied, finished):
    (sums,) = (copied / "film/film").glob("*.json")
    of_nothing = hashlib.blake2b(digest_size=16).hexdigest()
    sums.write_text(json.dumps([[-5, of_nothing], *json.loads(sums.read_text())]))
    assert made_again(copied, finished)[0] == []


def test_swapped_blocks_are_noticed(copied, finished):
    one, other = (copied / "film" / "blocks" / f"00000{number}-0.safetensors" for number in (2, 4))
    one.rename(copied / "between")
    other.rename(one)
    (copied / "between").rename(other)
    made, notes = made_again(copied, finished)
    assert made == [2, 4]
    assert "block 2, 4" in notes[0]


def test_a_block_of_another_render_is_noticed(copied, finished, tmp_path):
    SMALL.but(prompt=2).run(tmp_path, "other")
    shutil.copy(tmp_path / "other/blocks/000003-0.safetensors", copied / "film/blocks/000003-0.safetensors")
    assert made_again(copied, finished)[0] == [3]


def test_a_changed_segment_of_the_video_costs_what_comes_from_it_on(copied, finished):
    (film,) = (copied / "film").glob("film/*.growing.mp4")
    raw = bytearray(film.read_bytes())
    raw[len(raw) // 2] ^= 1
    film.write_bytes(raw)
    (copied / "film.mp4").unlink()
    filmed = [event.block for event in SMALL.run(copied) if isinstance(event, WrittenBlock)]
    print(f"filmed again: {filmed}")
    assert 0 < len(filmed) < 6
    assert filmed[-1] == 5
    assert difference(frames(copied), frames(finished)) == 0


@pytest.mark.parametrize("inside", ["blocks/000001-0.safetensors", "film", "manifest.json"])
def test_symbolic_links_inside_are_refused_and_nothing_outside_is_touched(copied, tmp_path, inside):
    place = copied / "film" / inside
    outside = tmp_path / "outside"
    place.rename(outside)
    before = {path: path.stat().st_mtime_ns for path in [outside, *outside.rglob("*")]}
    try:
        os.symlink(outside, place, target_is_directory=outside.is_dir())
    except OSError:
        pytest.skip("links are not allowed here")
    with pytest.raises(FolderError, match="is a symbolic link"):
        SMALL.open(copied)
    assert {path: path.stat().st_mtime_ns for path in [outside, *outside.rglob("*")]} == before


def test_a_render_that_was_copied_elsewhere_resumes(finished, tmp_path):
    for event in SMALL.events(tmp_path):
        if isinstance(event, BlockDone) and event.block == 3:
            break
    moved = Path(shutil.copytree(tmp_path / "film", tmp_path / "elsewhere" / "film")).parent
    SMALL.run(moved)
    assert np.array_equal(frames(moved), frames(finished))
