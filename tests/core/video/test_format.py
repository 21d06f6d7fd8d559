from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.video import CODECS, SegmentedWriter, VideoFormat, read_frames
from tests.films import picture


@pytest.mark.parametrize(
    "fps, rate",
    [
        (16, Fraction(16)),
        (16.0, Fraction(16)),
        (24, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (1, Fraction(1)),
    ],
)
def test_frame_rates_are_exact(fps, rate):
    assert VideoFormat(fps=fps).rate == rate


@pytest.mark.parametrize("fps", [16, 23.976, 29.97, 12.5, 1, 1.0001, 1.001, 10 / 3, 240, 17.123])
def test_a_frame_is_a_whole_number_of_ticks(fps):
    video_format = VideoFormat(fps=fps)
    assert Fraction(video_format.ticks_per_frame, video_format.timescale) * video_format.rate == 1
    assert 10_000 <= video_format.timescale < 2**31


@pytest.mark.parametrize("fps", [0, 0.001, -1, 241, float("nan"), float("inf")])
def test_impossible_frame_rates_are_refused(fps):
    with pytest.raises(PackForcingError, match=r"^fps is "):
        VideoFormat(fps=fps)


def test_an_unknown_codec_is_answered_with_the_known_ones():
    with pytest.raises(PackForcingError, match=r"'vp6'.*h264, h265, av1, lossless"):
        VideoFormat(codec="vp6")


@pytest.mark.parametrize("codec", CODECS)
def test_quality_stays_in_the_codecs_own_range(codec):
    low, high = CODECS[codec].quality_range
    assert low <= VideoFormat(codec=codec).crf <= high
    assert VideoFormat(codec=codec, quality=high).crf == high
    for wrong in (low - 1, high + 1):
        with pytest.raises(PackForcingError, match=f"quality is {wrong} for codec {codec}; expected"):
            VideoFormat(codec=codec, quality=wrong)


def test_a_zoomed_film_shows_every_pixel_as_a_square(tmp_path):
    frames = picture(0, 3, 32, 16)
    with SegmentedWriter(tmp_path / "film.mp4", 32, 16, VideoFormat("lossless", zoom=3)) as writer:
        writer.write(frames)
        film = writer.finish()
    shown = np.stack(list(read_frames(film)))
    print(shown.shape)
    assert np.array_equal(shown, frames.repeat(3, axis=1).repeat(3, axis=2))


@pytest.mark.parametrize("zoom", [0, -1, 17])
def test_an_impossible_zoom_is_refused(zoom):
    with pytest.raises(PackForcingError, match=f"zoom is {zoom}; expected"):
        VideoFormat(zoom=zoom)
