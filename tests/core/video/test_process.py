from __future__ import annotations

import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.video import FfmpegError, SegmentedWriter, VideoFormat
from packforcing_core.video.process import Encoder, run_ffmpeg


def test_a_refusal_ends_with_the_last_words_of_ffmpeg():
    with pytest.raises(FfmpegError, match=r"exit status .*last words: .*no_such_codec"):
        run_ffmpeg(["-f", "lavfi", "-i", "color", "-c:v", "no_such_codec", "-f", "null", "-"])


def test_a_missing_ffmpeg_is_answered_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    with pytest.raises(PackForcingError, match="IMAGEIO_FFMPEG_EXE"):
        SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat())


def test_an_encoder_that_says_a_lot_does_not_block():
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", "16x16", "-i", "pipe:0"]
    encoder = Encoder(["-v", "trace", *raw, "-c:v", "rawvideo", "-f", "rawvideo", "pipe:1"])
    frame = bytes(range(256)) * 3
    for _ in range(2000):  # megabytes of trace on stderr and of frames on stdout, far beyond a pipe's buffer
        encoder.write(frame)
    assert encoder.close() == frame * 2000


def test_a_killed_encoder_says_so():
    encoder = Encoder(
        ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", "16x16", "-i", "pipe:0", "-f", "null", "-"]
    )
    encoder.kill()
    with pytest.raises(FfmpegError, match=r"ffmpeg (was killed|failed)"):
        encoder.close()
