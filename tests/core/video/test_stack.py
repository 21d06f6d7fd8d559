from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.video import SegmentedWriter, VideoFormat, probe, read_frames
from packforcing_core.video.stack import stack_videos


def film(path, colour, frames=5, width=32, height=16, fps=16.0):
    pictures = np.full((frames, height, width, 3), colour, np.uint8)
    pictures[:, 0, 0] = np.arange(frames)[:, None]  # a clock
    with SegmentedWriter(path, width, height, VideoFormat("lossless", fps=fps)) as writer:
        writer.write(pictures)
        writer.finish()
    return path


def test_films_stand_side_by_side_under_their_captions(tmp_path):
    films = [film(tmp_path / "a.mp4", (255, 0, 0), width=32), film(tmp_path / "b.mp4", (0, 0, 255), width=48)]
    captions = [np.full((8, width, 3), 128, np.uint8) for width in (32, 48)]
    stacked = tmp_path / "both.mp4"
    assert list(stack_videos(films, stacked, "lossless", captions)) == [1, 2, 3, 4, 5]
    info = probe(stacked)
    assert (info.frames, info.width, info.height, info.fps) == (5, 80, 24, 16)
    for index, frame in enumerate(read_frames(stacked)):
        assert (frame[:8] == 128).all()
        assert (frame[12, 10], frame[12, 70]) == (pytest.approx((255, 0, 0)), pytest.approx((0, 0, 255)))
        assert frame[8, 0, 0] == frame[8, 32, 0] == index


def test_a_film_that_ends_early_shows_its_last_frame(tmp_path):
    films = [film(tmp_path / "a.mp4", 10, frames=3), film(tmp_path / "b.mp4", 20, frames=6)]
    assert list(stack_videos(films, tmp_path / "both.mp4", "lossless"))[-1] == 6
    frames = list(read_frames(tmp_path / "both.mp4"))
    assert [(frame[0, 0, 0], frame[0, 32, 0]) for frame in frames] == [(0, 0), (1, 1), (2, 2), (2, 3), (2, 4), (2, 5)]


@pytest.mark.parametrize(("other", "message"), [({"height": 32}, "32 pixels high"), ({"fps": 24.0}, "24")])
def test_films_that_do_not_agree_are_refused(tmp_path, other, message):
    films = [film(tmp_path / "a.mp4", 10), film(tmp_path / "b.mp4", 20, **other)]
    with pytest.raises(PackForcingError, match=message):
        list(stack_videos(films, tmp_path / "both.mp4"))
    assert not (tmp_path / "both.mp4").exists()
