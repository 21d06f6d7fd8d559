"""SIGKILL at random moments, in sampling, decoding and writing a block: the film is that of an unbroken run."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob  # Unlike Path.glob it passes over folders that vanish meanwhile.
from pathlib import Path

import numpy as np
import pytest
import torch

from packforcing_core.folder.files import UNFINISHED
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.video import read_frames
from tests.films import closed_segments
from tests.small import small_context, small_model
from tests.survivor import (
    FRAMES_PER_BLOCK,
    MORE_POLICIES,
    POLICIES,
    TURNS,
    OtherProcess,
    Small,
    difference,
    frames,
    send_events,
)

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BLOCKS = 8
SMALL = Small(blocks=BLOCKS)
WAYS = {
    **{policy: Small(policy) for policy in (*POLICIES, *MORE_POLICIES) if policy != SMALL.policy},
    **{turn: Small(turn=turn) for turn in TURNS},
}
"""Renders of 8 blocks besides the plain one: every policy, every place of the bank, every change of prompt."""
Moment = Callable[[OtherProcess, Path], None]


def start(root: Path) -> OtherProcess:
    return OtherProcess(send_events, SMALL, root)


def after_events(count: int, pause: float) -> Moment:
    """After so many events of the render, and a little later: somewhere in sampling, decoding or writing."""

    def wait(process: OtherProcess, folder: Path) -> None:
        for _ in range(count):
            process.receive()
        time.sleep(pause)

    return wait


def while_writing(part: str, number: int) -> Moment:
    """While the `number`-th file of `part` is half written."""

    def wait(process: OtherProcess, folder: Path) -> None:
        seen: set[str] = set()
        while process.alive() and len(seen) < number:
            time.sleep(0.0005)
            seen |= {Path(path).name for path in glob(f"{folder / part}/**/{UNFINISHED}/*", recursive=True)}

    return wait


def moments(count: int) -> list[tuple[str, Moment]]:
    """Random moments: most anywhere, every fourth in the middle of writing a block."""
    chance = random.Random(6)
    made: list[tuple[str, Moment]] = []
    for number in range(count):
        if number % 4 == 1:
            nth = chance.randint(1, BLOCKS)
            made.append((f"{number}: writing block {nth}", while_writing("blocks", nth)))
        else:
            events, pause = chance.randint(0, 4 * BLOCKS - 2), chance.uniform(0, 0.15)
            made.append((f"{number}: event {events} + {1000 * pause:.0f} ms", after_events(events, pause)))
    return made


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    SMALL.run(root)
    return frames(root)


def kill(small: Small, root: Path, moment: Moment) -> None:
    with OtherProcess(send_events, small, root) as process:  # Leaving it kills.
        moment(process, root / "film")


def kill_and_resume(root: Path, unbroken, moment: Moment, small: Small = SMALL) -> str:
    """One killed render brought back; what was found on the way."""
    kill(small, root, moment)
    growing = list(root.glob("film/film/*.growing.mp4"))
    safe = sum(1 for _ in read_frames(growing[0])) if growing and closed_segments(growing[0]) else 0
    on_disk = len(list(root.glob("film/blocks/*.safetensors")))
    events = small.run(root)
    again = [event.block for event in events if isinstance(event, BlockDone) and not event.reused]
    # A rolling window's blocks are all in the making until they leave it, so more than those that lack are made.
    assert again == list(range(again[0] if again else BLOCKS, BLOCKS))
    assert len(again) == BLOCKS - on_disk or (small.policy == "rolling" and len(again) >= BLOCKS - on_disk)
    worst = difference(frames(root), unbroken)
    assert worst == 0
    assert not list(root.glob(f"**/{UNFINISHED}/*"))
    return f"{on_disk} blocks and {safe} playable frames on disk, {len(again)} blocks made after it, difference {worst}"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_three_kills_resume_to_the_identical_film(tmp_path, unbroken):
    for name, moment in moments(3):
        folder = tmp_path / name.split(":")[0]
        folder.mkdir()
        print(name, "->", kill_and_resume(folder, unbroken, moment))


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_twenty_kills_resume_to_the_identical_film(tmp_path, unbroken):
    for name, moment in moments(20):
        folder = tmp_path / name.split(":")[0]
        folder.mkdir()
        print(name, "->", kill_and_resume(folder, unbroken, moment), flush=True)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_render_that_is_killed_again_and_again_still_comes_to_its_end(tmp_path, unbroken):
    chance = random.Random(1)
    for _ in range(3):
        with start(tmp_path) as process:
            after_events(chance.randint(3, 9), chance.uniform(0, 0.05))(process, tmp_path)
    with start(tmp_path) as process:
        assert process.ended() == 0
    assert difference(frames(tmp_path), unbroken) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("way", WAYS)
def test_one_kill_of_each_kind_of_render_resumes_to_the_identical_video(tmp_path, way):
    kinds_of_render(tmp_path, WAYS[way], moments(len(WAYS))[list(WAYS).index(way)])


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("way", WAYS)
def test_twenty_kills_of_each_kind_of_render_resume_to_the_identical_video(tmp_path, way):
    kinds_of_render(tmp_path, WAYS[way], *moments(20))


def kinds_of_render(root: Path, small: Small, *moments: tuple[str, Moment]) -> None:
    small.run(root / "unbroken")
    for name, moment in moments:
        folder = root / name.split(":")[0]
        folder.mkdir()
        print(name, "->", kill_and_resume(folder, frames(root / "unbroken"), moment, small), flush=True)


def while_finishing(process: OtherProcess, folder: Path) -> None:
    """While ffmpeg writes the finished file; before the first block its name is only tried."""
    while process.alive() and not (
        len(glob(f"{folder}/blocks/*.safetensors")) == BLOCKS and glob(f"{folder.parent}/*.unfinished.mp4")
    ):
        time.sleep(0.0005)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_kill_while_the_finished_file_is_written_leaves_one_identical_video(tmp_path, unbroken):
    for attempt in range(10):
        root = tmp_path / str(attempt)
        root.mkdir()
        kill(SMALL, root, while_finishing)
        if not (root / "film.mp4").exists():
            break
    else:
        pytest.fail("ten renders ended before they were seen at it")
    assert [event.block for event in SMALL.run(root) if isinstance(event, BlockDone) and not event.reused] == []
    assert difference(frames(root), unbroken) == 0
    assert [path.name for path in root.glob("*.mp4")] == ["film.mp4"]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Small(blocks=4, codec="lossless"), Small(codec="lossless", mode="extend")),
        (Small(codec="lossless"), Small(codec="lossless", mode="retake", retake_block=3, prompt=2)),
    ],
    ids=["extend", "retake"],
)
def test_a_longer_render_and_a_retake_survive_kills(tmp_path, first, then):
    whole = tmp_path / "whole"
    first.run(whole)
    then.run(shutil.copytree(whole, tmp_path / "unbroken"))
    for name, moment in (("sampling", after_events(9, 0.02)), ("writing", while_writing("blocks", 2))):
        for attempt in range(10):
            root = Path(shutil.copytree(whole, tmp_path / f"{name}-{attempt}"))
            kill(then, root, moment)
            if len(list((root / "film" / "blocks").glob("*.safetensors"))) < 3 + BLOCKS:
                break
        else:
            pytest.fail("ten renders ended before they were seen at it")
        then.run(root)
        worst = difference(frames(root), frames(tmp_path / "unbroken"))
        print(f"killed in {name}: difference {worst} of 255")
        assert worst == 0


OTHER = """
import sys
from pathlib import Path
import torch
from packforcing_core.sampler.denoising import BlockDone
from tests import survivor
torch.set_num_threads(2)
root = Path(sys.argv[1])
# The weights and the text are files that travel; what this processor draws at random differs in its last bits.
weights, text = torch.load(root / "parts.pt", weights_only=True)
model = survivor.small_model()
model.net.load_state_dict(weights)
survivor.small_model, survivor.small_context = lambda seed: model, lambda seed: text
small = survivor.Small(codec="lossless")
print("made", *(e.block for e in small.run(root) if isinstance(e, BlockDone) and not e.reused))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_copied_folder_goes_on_on_another_processor_with_the_blocks_that_it_has(tmp_path):
    small = Small(codec="lossless")
    small.run(tmp_path / "unbroken")
    for events in range(4 * 5, 4 * 2, -4):  # On a busy machine the render may end before the kill: then an earlier one.
        shutil.rmtree(tmp_path / "here", ignore_errors=True)
        kill(small, tmp_path / "here", after_events(events, 0))
        kept = {path.name: path.read_bytes() for path in tmp_path.glob("here/film/blocks/*.safetensors")}
        if len(kept) < BLOCKS:
            break
    assert 2 <= len(kept) < BLOCKS
    there = Path(shutil.move(tmp_path / "here", tmp_path / "there"))
    torch.save((small_model(seed=0).net.state_dict(), small_context(seed=small.prompt)), there / "parts.pt")
    poorer = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", OTHER, str(there)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **poorer}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    assert f"made {' '.join(map(str, range(len(kept), BLOCKS)))}" in done.stdout
    assert {name: (there / "film" / "blocks" / name).read_bytes() for name in kept} == kept
    seen, whole = frames(there), frames(tmp_path / "unbroken")
    shared = 4 * FRAMES_PER_BLOCK * (len(kept) - 1) - 3
    apart = np.abs(seen.astype(int) - whole).mean()
    print(f"{len(kept)} blocks kept, {shared} frames compared, mean difference of all {apart:.3f} of 255")
    assert np.array_equal(seen[:shared], whole[:shared])
    assert apart < 1
