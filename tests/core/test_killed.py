"""SIGKILL at random moments, in sampling, decoding and writing a block: the film is that of an unbroken run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from glob import glob  # Unlike Path.glob it passes over folders that vanish meanwhile.
from pathlib import Path

import pytest

from packforcing_core.folder.files import UNFINISHED
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.video import read_frames
from tests.films import closed_segments
from tests.survivor import OtherProcess, Small, difference, frames, send_events

pytestmark = pytest.mark.integration

BLOCKS = 8
Moment = Callable[[OtherProcess, Path], None]


def start(root: Path) -> OtherProcess:
    return OtherProcess(send_events, Small(blocks=BLOCKS), root)


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
    Small(blocks=BLOCKS).run(root)
    return frames(root)


def kill_and_resume(root: Path, unbroken, moment: Moment) -> str:
    """One killed render brought back; what was found on the way."""
    with start(root) as process:  # Leaving it kills.
        moment(process, root / "film")
    growing = list(root.glob("film/film/*.growing.mp4"))
    safe = sum(1 for _ in read_frames(growing[0])) if growing and closed_segments(growing[0]) else 0
    on_disk = len(list(root.glob("film/blocks/*.safetensors")))
    events = Small(blocks=BLOCKS).run(root)
    again = [event.block for event in events if isinstance(event, BlockDone) and not event.reused]
    assert again == list(range(on_disk, BLOCKS)), "a block that was on disk is never sampled again"
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
