from __future__ import annotations

import subprocess

import imageio_ffmpeg
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.video import FfmpegError, SegmentedWriter, VideoFormat
from packforcing_core.video import process as process_module
from packforcing_core.video.process import Encoder, _version, run_ffmpeg, start_ffmpeg


def test_a_refusal_ends_with_the_last_words_of_ffmpeg():
    with pytest.raises(FfmpegError, match=r"exit status .*last output: .*no_such_codec"):
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


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("ffmpeg version 4.2.2-static https://x Copyright", (4, 2)),
        ("ffmpeg version n7.1 Copyright", (7, 1)),
        ("ffmpeg version N-12345-gabcdef Copyright", None),
        ("ffmpeg version 2024-01-01-git-abc Copyright", None),
    ],
)
def test_versions_are_read(monkeypatch, tmp_path, said, version):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said.encode()))
    assert _version(f"{tmp_path}/{said}") == version


def test_an_old_ffmpeg_is_replaced_by_one_that_is_there_and_refused_where_none_is(monkeypatch, tmp_path, caplog):
    old = str(tmp_path / "ancient")
    run, real = subprocess.run, imageio_ffmpeg.get_ffmpeg_exe()

    def answer(command, **options):
        if command[0] == old:
            return subprocess.CompletedProcess(command, 0, b"ffmpeg version 4.2.2-static Copyright")
        return run(command, **options)

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: old)
    monkeypatch.setattr(subprocess, "run", answer)
    with start_ffmpeg(["-version"]) as process:
        assert process.args[0] == real
    assert "is ffmpeg 4.2; expected 7.1 or newer" in caplog.text
    process_module._instead_of.cache_clear()
    monkeypatch.setattr(imageio_ffmpeg, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FfmpegError, match=r"is ffmpeg 4\.2; expected 7\.1 or newer.*--upgrade imageio-ffmpeg"):
        start_ffmpeg(["-version"])
    process_module._instead_of.cache_clear()
