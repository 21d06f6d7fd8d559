from __future__ import annotations

import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from packforcing_core.video import SegmentedWriter, VideoError, VideoFormat, probe, read_frames
from packforcing_core.video import reader as reading
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


X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params")
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params")
OPEN = "keyint=20:bframes=4:open-gop=1:log-level=error"
LATE = "setpts='if(lt(N,40),N,N+9+0.3*mod(N,3))/24/TB'"
SEEKS = {
    "closed.mp4": (*X264, "keyint=20:bframes=3"),
    "fragments.mp4": (*X264, "keyint=20:bframes=3", "-movflags", "frag_keyframe+empty_moov+default_base_moof"),
    "open.mkv": (*X264, OPEN),
    "refreshed.mp4": (*X264, "keyint=20:intra-refresh=1:bframes=0"),
    "fields.mov": ("-vf", "interlace", "-flags", "+ilme+ildct", *X264, "keyint=20"),
    "uneven.mkv": ("-vf", LATE, "-fps_mode", "passthrough", *X264, "keyint=20:bframes=3"),
    "hevc.mov": (*X265, OPEN),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-g", "20", "-lag-in-frames", "8", "-cpu-used", "8"),
    "every.mov": ("-c:v", "mjpeg"),
}
"""Files of which only the end is decoded."""
OTHERS = {
    "open.ts": (*X264, OPEN),
    "refreshed.h264": (*X264, "keyint=20:intra-refresh=1:bframes=0"),
    "old.avi": ("-c:v", "mpeg4", "-bf", "2", "-g", "20"),
    "theora.ogv": ("-c:v", "libtheora", "-g", "20"),
}


@pytest.mark.parametrize("name", [*SEEKS, *OTHERS])
def test_frames_from_a_number_on_are_those_of_the_whole_video(tmp_path, monkeypatch, name):
    path = tmp_path / name
    moving = ("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=24:duration=4")
    made = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *moving, *{**SEEKS, **OTHERS}[name], str(path)]
    subprocess.run(made, check=True)
    begun = []
    decoded = reading._decoded
    monkeypatch.setattr(reading, "_decoded", lambda *args: begun.append(args[2].stored) or decoded(*args))
    whole = list(read_frames(path))
    count = len(whole)
    places = sorted({0, 1, 19, 20, 21, 41, 42, 43, count - 20, count - 2, count - 1, count})
    for since in places:
        frames = list(read_frames(path, since))
        assert len(frames) == count - since
        assert all(np.array_equal(frame, same) for frame, same in zip(frames, whole[since:], strict=True)), since
    print(f"{count} frames, decoded from {begun[1:]} for {places}")
    assert (max(begun) > 40) == (name in SEEKS)
