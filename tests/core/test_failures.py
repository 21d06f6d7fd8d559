"""What can go wrong on the way, provoked: a clear message, and the render goes on to the identical film."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from packforcing_core.attention import sdpa
from packforcing_core.errors import PackForcingError
from packforcing_core.folder.files import FolderError
from packforcing_core.folder.folder import RenderFolder
from packforcing_core.model.causal import CausalWan
from packforcing_core.render.writing import Note, WrittenBlock
from packforcing_core.sampler.denoising import BlockDone, StepDone
from packforcing_core.video import read_frames
from tests.films import closed_segments, kill_encoders
from tests.small import CONFIG, small_net
from tests.survivor import OtherProcess, Small, difference, frames
from tests.vaes import TINY, random_vae

pytestmark = pytest.mark.integration

SMALL = Small("on_device", blocks=6)
# Attention calls of a block: two layers, self and cross, in two steps; the commit ends at the last layer's keys.
CALLS = 10


class FaultyAttention:
    """The attention seam with a fault in some of its calls."""

    def __init__(self, faulty: Callable[[int], bool], fault: Callable[[Tensor], Tensor]):
        self.calls, self._faulty, self._fault = 0, faulty, fault

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls += 1
        out = sdpa(q, k, v)
        return self._fault(out) if self._faulty(self.calls) else out


def out_of_memory(_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore words")


def faulty_model(faulty: Callable[[int], bool], fault: Callable[[Tensor], Tensor] = out_of_memory) -> CausalWan:
    return CausalWan(small_net(), CONFIG, attention=FaultyAttention(faulty, fault))


def faulty_vae(faulty: Callable[[int], bool]):
    """A VAE whose decoder runs out of memory in some of its calls."""
    vae = random_vae(TINY)
    healthy, calls = vae.decode_frames, iter(range(1, 10_000))

    def decode_frames(latents, state, at_once):
        return out_of_memory(latents) if faulty(next(calls)) else healthy(latents, state, at_once)

    vae.decode_frames = decode_frames
    return vae


@pytest.fixture(scope="module")
def unbroken_films(tmp_path_factory) -> dict[str, np.ndarray]:
    """The film of a healthy run by its policy."""
    root = tmp_path_factory.mktemp("unbroken")
    films = {}
    for policy in ("on_device", "window"):
        SMALL.but(policy=policy).run(root, policy)
        films[policy] = frames(root, policy)
    return films


@pytest.fixture(scope="module")
def unbroken(unbroken_films) -> np.ndarray:
    return unbroken_films[SMALL.policy]


def resumes(root: Path, unbroken: np.ndarray) -> list[int]:
    """The blocks that a healthy run makes after the failure; its film must be the unbroken one."""
    events = SMALL.run(root)
    assert difference(frames(root), unbroken) == 0
    return [event.block for event in events if isinstance(event, BlockDone) and not event.reused]


def playable_frames(root: Path) -> int:
    (film,) = root.glob("film/film/*.growing.mp4")
    return sum(1 for _ in read_frames(film))


@pytest.mark.parametrize("policy", ["on_device", "window"])
@pytest.mark.parametrize("call", [2, 3 * CALLS, 4 * CALLS + 1])
def test_memory_that_runs_out_once_in_sampling_is_freed_and_the_render_goes_on(tmp_path, unbroken_films, policy, call):
    events = SMALL.but(policy=policy).run(tmp_path, model=faulty_model(lambda n: n == call))
    (note,) = [event.text for event in events if isinstance(event, Note)]
    print(note)
    assert "Out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)" in note
    assert "moved the bank to system RAM" in note
    assert difference(frames(tmp_path), unbroken_films[policy]) == 0
    made = [event.block for event in events if isinstance(event, BlockDone) and not event.reused]
    assert made == list(range(6)), "no block is sampled twice"


@pytest.mark.parametrize(("policy", "call"), [("on_device", 1), ("on_device", 17), ("window", 8)])
def test_memory_that_runs_out_once_in_decoding_is_answered_with_smaller_steps(tmp_path, unbroken_films, policy, call):
    events = SMALL.but(policy=policy).run(tmp_path, vae=faulty_vae(lambda n: n == call))
    assert [event for event in events if isinstance(event, Note)]
    assert difference(frames(tmp_path), unbroken_films[policy]) == 0


def test_memory_that_stays_out_stops_the_render_where_it_can_be_resumed(tmp_path, unbroken):
    with pytest.raises(FolderError, match=r"Out of memory, also with .* blocks are safe") as stopped:
        SMALL.run(tmp_path, model=faulty_model(lambda n: n > 3 * CALLS))
    print(stopped.value)
    kept = len(list((tmp_path / "film" / "blocks").glob("*.safetensors")))
    assert f"{kept} of 6 blocks are safe" in str(stopped.value)
    assert kept >= 2
    assert playable_frames(tmp_path) >= 21
    assert resumes(tmp_path, unbroken) == list(range(kept, 6))


def test_values_that_are_not_finite_stop_the_render_and_the_blocks_before_stand(tmp_path, unbroken):
    nan = faulty_model(lambda n: 3 * CALLS <= n < 3 * CALLS + 4, lambda out: out * float("nan"))
    with pytest.raises(PackForcingError, match=r"Block [1-4] has values that are not finite"):
        SMALL.run(tmp_path, model=nan)
    kept = len(list((tmp_path / "film" / "blocks").glob("*.safetensors")))
    assert resumes(tmp_path, unbroken) == list(range(kept, 6))


def test_a_cache_that_is_not_finite_is_not_resumed_from(tmp_path, unbroken_films):
    """NaN in the commit of block 1 spoils the cache; what resumes commits the blocks again."""
    small = SMALL.but(policy="window")
    spoilt = faulty_model(lambda n: CALLS + 8 < n <= 2 * CALLS, lambda out: out * float("nan"))
    with pytest.raises(PackForcingError, match="Block 2 has values that are not finite"):
        small.run(tmp_path, model=spoilt)
    small.run(tmp_path)
    assert difference(frames(tmp_path), unbroken_films["window"]) == 0


def test_a_killed_encoder_stops_the_render_and_no_block_is_lost(tmp_path, unbroken):
    def killed_in_its_segment() -> bool:
        """Whether an encoder was killed that waits for block 3, which is being sampled: its segment begins with 2."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            (growing,) = [*(tmp_path / "film" / "film").glob("*.growing.mp4")] or [tmp_path]
            if closed_segments(growing) == 1 and kill_encoders():
                return True
            time.sleep(0.01)
        return False

    def kill_the_encoder() -> None:
        for event in SMALL.events(tmp_path):
            if isinstance(event, StepDone) and (event.block, event.step) == (3, 0):
                assert killed_in_its_segment(), "no encoder ran"

    with pytest.raises(PackForcingError, match="ffmpeg") as stopped:
        kill_the_encoder()
    print(stopped.value)
    assert playable_frames(tmp_path) >= 21
    kept = len(list((tmp_path / "film" / "blocks").glob("*.safetensors")))
    assert resumes(tmp_path, unbroken) == list(range(kept, 6))


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be moved on Windows")
@pytest.mark.parametrize("what", ["film", "film/blocks", "film/film"])
def test_a_folder_that_vanishes_is_noticed_and_when_it_is_back_the_render_goes_on(tmp_path, unbroken, what):
    stood = 0

    def take_it_away() -> None:
        nonlocal stood
        for event in SMALL.events(tmp_path):
            if isinstance(event, WrittenBlock) and event.block == 2:
                stood = len(list((tmp_path / "film" / "blocks").glob("*.safetensors")))
                (tmp_path / what).rename(tmp_path / "elsewhere")

    with pytest.raises(PackForcingError) as stopped:
        take_it_away()
    print(stopped.value)
    assert any(word in str(stopped.value) for word in ("cannot be written", "cannot be used", "was removed"))
    shutil.rmtree(tmp_path / what, ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / what)
    kept = len(list((tmp_path / "film" / "blocks").glob("*.safetensors")))
    # A writer of its own stores the blocks: the newest one or two may still be on their way when the folder goes.
    assert kept >= stood
    assert resumes(tmp_path, unbroken) == list(range(kept, 6))


def render_limited(send: Callable[[str], None], small: Small, root: Path, limit: str, room: int) -> None:
    """Work for another process: the render, of which the files or the memory may not grow by more than `room` bytes."""
    import resource

    if limit == "RLIMIT_AS":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + room,) * 2)
    try:
        for event in small.events(root):
            if limit == "RLIMIT_FSIZE" and isinstance(event, BlockDone) and event.block == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    except PackForcingError as error:
        send(str(error))


def run_limited(small: Small, root: Path, limit: str, room: int) -> str:
    """What the render said when it stopped at the limit."""
    with OtherProcess(render_limited, small, root, limit, room) as process:
        said = process.receive()
    print(said)
    return said


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
@pytest.mark.parametrize("room", [2_000, 20_000])
def test_files_that_may_not_grow_stop_the_render_and_no_block_is_lost(tmp_path, unbroken, room):
    """2,000 bytes are too few for a block, 20,000 for the video in the end."""
    said = run_limited(SMALL, tmp_path, "RLIMIT_FSIZE", room)
    assert "cannot be written" in said or "could not be written" in said
    kept = len(list((tmp_path / "film" / "blocks").glob("*.safetensors")))
    assert kept >= 2
    assert resumes(tmp_path, unbroken) == list(range(kept, 6))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_a_host_whose_memory_runs_out_says_so_and_keeps_what_there_is(tmp_path):
    """A cache of 740 MB where the process may take 300 MB more."""
    small = SMALL.but(policy="full", blocks=3)
    small.run(tmp_path)
    before = frames(tmp_path)
    said = run_limited(small.but(blocks=20_000, mode="extend"), tmp_path, "RLIMIT_AS", 300_000_000)
    assert "Out of memory" in said
    assert "3 of 20000 blocks are safe" in said
    assert np.array_equal(frames(tmp_path), before)
    assert playable_frames(tmp_path) == 21, "the short last segment is cut off, to be made whole"


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk takes root on Linux")
def test_a_disk_that_is_full_stops_the_render_and_more_room_lets_it_go_on(tmp_path, unbroken):
    disk = tmp_path / "disk"
    if not mounted(disk, "64k"):
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(PackForcingError, match="No space left") as stopped:
            SMALL.run(disk)
        print(stopped.value)
        kept = len(list((disk / "film" / "blocks").glob("*.safetensors")))
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert kept >= 1
        assert resumes(disk, unbroken) == list(range(kept, 6))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # a process that ended late may still hold it


def test_a_failure_leaves_no_thread_and_no_lock(tmp_path):
    with pytest.raises(FolderError):
        SMALL.run(tmp_path, model=faulty_model(lambda n: n > CALLS))
    folder = SMALL.open(tmp_path)
    assert isinstance(folder, RenderFolder)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("packforcing")] == []
