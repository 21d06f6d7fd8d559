from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import psutil
import pytest

from packforcing_core.video import SegmentedWriter, VideoError, VideoFormat, probe, read_frames
from tests.films import picture, write_segments


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with SegmentedWriter(path, 64, 48, VideoFormat(fps=23.976)) as writer:
        write_segments(writer, range(3))
        return writer.finish()


def test_probe_tells_what_is_in_the_file(film):
    info = probe(film)
    assert (info.frames, info.width, info.height, info.codec) == (12, 64, 48, "h264")
    assert info.fps == Fraction(24000, 1001)
    assert info.duration == pytest.approx(12 * 1001 / 24000)


def test_frames_read_here_are_those_that_another_reader_sees(film):
    with av.open(str(film)) as container:
        other = np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])
    luma_there = other[:, :48].astype(float)
    ours = np.stack(list(read_frames(film))).astype(float)
    luma_here = 16 + (ours @ [0.2126, 0.7152, 0.0722]) * 219 / 255
    difference = np.abs(luma_here - luma_there).max()
    print(f"max difference of luma {difference:.1f} levels")
    assert ours.shape == (12, 48, 64, 3)
    assert difference < 4


def test_reading_may_stop_early_and_leaves_no_process(film):
    before = set(psutil.Process().children())
    frames = read_frames(film)
    first = next(frames)
    frames.close()
    print(f"mean difference {np.abs(first.astype(int) - picture(0)[0]).mean():.2f} levels")
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("content", [None, b"", b"no video " * 100])
def test_what_is_no_video_is_refused_by_name(tmp_path, content):
    path = tmp_path / "thing.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(VideoError, match=r"thing\.mp4 cannot be read"):
            read(path)
