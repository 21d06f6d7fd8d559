"""What is left of a film after each way in which writing it can end badly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.video import SegmentedWriter, VideoFormat, probe, read_frames, scan_video
from tests.films import grown_film, kill_encoders, picture, write_segments

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")

WRITE_FOREVER = """
import sys
from packforcing_core.video import SegmentedWriter, VideoFormat
from tests.films import picture
with SegmentedWriter(sys.argv[1], 64, 48, VideoFormat()) as writer:
    for block in range(100_000):
        writer.write(picture(block * 4))
        writer.end_segment()
        print(writer.segments, flush=True)
"""

DISK_FULL = """
import resource, signal, sys
from packforcing_core.errors import PackForcingError
from packforcing_core.video import SegmentedWriter, VideoFormat
from tests.films import write_segments
try:
    with SegmentedWriter(sys.argv[1], 64, 48, VideoFormat()) as writer:
        write_segments(writer, range(2))
        size = writer.growing_path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2]),) * 2)
        if sys.argv[3] == "crash":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if sys.argv[3] != "finish":
            write_segments(writer, range(2, 3))
        else:
            writer.finish({"workflow": "x" * 100_000})
except PackForcingError as error:
    print(error)
"""


def run_python(code: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )


@posix
@pytest.mark.parametrize("room", [3, 8, 45, 105, 1000])
def test_a_crash_in_the_middle_of_a_write_leaves_a_film_that_plays(tmp_path, room):
    with run_python(DISK_FULL, tmp_path / "film.mp4", room, "crash") as process:
        assert process.wait() == -signal.SIGXFSZ
    growing = tmp_path / "film.growing.mp4"
    closed = grown_film(tmp_path / "unbroken.mp4", VideoFormat(), segments=2)
    assert growing.stat().st_size == closed.stat().st_size + room
    assert len(scan_video(growing).segments) == 2
    assert np.array_equal(np.stack(list(read_frames(growing))), np.stack(list(read_frames(closed))))


def test_a_film_cut_at_any_byte_can_be_continued_from_its_closed_segments(tmp_path):
    unbroken = grown_film(tmp_path / "film.mp4", VideoFormat(), segments=3)
    data, whole = unbroken.read_bytes(), scan_video(unbroken)
    cut = tmp_path / "cut.growing.mp4"
    for size in random.Random(0).sample(range(whole.end(1), len(data)), 5):
        cut.write_bytes(data[:size])
        closed = len(scan_video(cut).segments)
        with SegmentedWriter(tmp_path / "cut.mp4", 64, 48, VideoFormat(), first_segment=closed) as writer:
            write_segments(writer, range(closed, 3))
        assert cut.read_bytes() == data


def test_a_writer_killed_at_any_moment_leaves_a_film_that_continues_exactly(tmp_path):
    unbroken = grown_film(tmp_path / "unbroken.mp4", VideoFormat(), segments=3).read_bytes()
    for attempt, pause in enumerate((0.0, 0.013, 0.041)):
        path = tmp_path / f"killed{attempt}.mp4"
        with run_python(WRITE_FOREVER, path) as process:
            while int(process.stdout.readline()) < 2:
                pass
            time.sleep(pause)
            process.kill()
        growing = path.with_name(f"killed{attempt}.growing.mp4")
        film = scan_video(growing)
        assert len(film.segments) >= 2
        assert probe(growing).frames >= film.frames(len(film.segments))
        with SegmentedWriter(path, 64, 48, VideoFormat(), first_segment=2) as writer:
            write_segments(writer, range(2, 3))
            assert writer.growing_path.read_bytes() == unbroken
            assert probe(writer.finish()).frames == 12


@posix
@pytest.mark.parametrize("room", [0, 700])
def test_a_full_disk_keeps_the_closed_segments_and_says_so(tmp_path, room):
    with run_python(DISK_FULL, tmp_path / "film.mp4", room, "write") as process:
        message = process.stdout.read()
    print(message)
    assert "first 2 segments (8 frames) are complete" in message
    assert "continue from segment 2" in message
    expected = grown_film(tmp_path / "unbroken.mp4", VideoFormat(), segments=2).read_bytes()
    assert (tmp_path / "film.growing.mp4").read_bytes() == expected, "the torn tail is cut off again"


@posix
def test_a_disk_that_fills_while_finishing_costs_nothing(tmp_path):
    path = tmp_path / "film.mp4"
    with run_python(DISK_FULL, path, 0, "finish") as process:
        message = process.stdout.read()
    print(message)
    assert "ffmpeg" in message
    assert "(8 frames) are complete" in message
    assert [file.name for file in tmp_path.iterdir()] == ["film.growing.mp4"]
    with SegmentedWriter(path, 64, 48, VideoFormat(), first_segment=2) as writer:
        assert probe(writer.finish()).frames == 8


def test_a_killed_encoder_is_reported_and_the_film_goes_on_from_the_last_segment(tmp_path):
    path = tmp_path / "film.mp4"
    with SegmentedWriter(path, 64, 48, VideoFormat()) as writer:
        write_segments(writer, range(2))
        writer.write(picture(8))
        kill_encoders()
        with pytest.raises(PackForcingError, match=r"ffmpeg .*last output.*first 2 segments \(8 frames\) are complete"):
            write_segments(writer, range(3, 2000))
        with pytest.raises(PackForcingError, match="failed before"):
            writer.write(picture(8))
    assert probe(writer.growing_path).frames == 8
    with SegmentedWriter(path, 64, 48, VideoFormat(), first_segment=2) as writer:
        write_segments(writer, range(2, 3))
        continued = writer.growing_path.read_bytes()
    assert continued == grown_film(tmp_path / "unbroken.mp4", VideoFormat(), segments=3).read_bytes()


@posix
def test_control_c_keeps_every_frame_that_was_written(tmp_path):
    # Whoever runs the tests in the background has the interrupt ignored, and children inherit that.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + WRITE_FOREVER
    code = code.replace("end_segment()", "segments").replace("writer.segments, flush", "block, flush")
    with run_python(code, tmp_path / "film.mp4", start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while int(process.stdout.readline()) < 20:
            pass
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to ffmpeg as well, if it were in the group
        written = 4 * max(int(line) + 1 for line in process.stdout.read().split() or ["20"])
    frames = probe(tmp_path / "film.growing.mp4").frames
    print(f"{written} frames reported, {frames} in the film")
    assert written <= frames <= written + 4


def test_a_film_that_vanishes_is_noticed(tmp_path):
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer:
        write_segments(writer, range(1))
        if os.name == "nt":
            pytest.skip("an open file cannot be removed on Windows")
        writer.growing_path.unlink()
        writer.write(picture(4))
        with pytest.raises(PackForcingError, match="was removed"):
            writer.end_segment()
