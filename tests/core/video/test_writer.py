from __future__ import annotations

import json
import threading
from dataclasses import replace

import av
import numpy as np
import psutil
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.video import CODECS, SegmentedWriter, VideoError, VideoFormat, probe, read_frames, scan_video
from tests.films import encoders, grown_film, picture, timestamps, write_segments

FFMPEG_NAMES = {"h264": "h264", "h265": "hevc", "av1": "av1", "lossless": "h264"}


def finished(path, video_format, segments, width=64, height=48):
    with SegmentedWriter(path, width, height, video_format) as writer:
        write_segments(writer, range(segments))
        return writer.finish()


@pytest.mark.parametrize("fps", [16, 23.976])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_makes_a_film_of_the_right_frames_size_and_rate(tmp_path, codec, fps):
    video_format = VideoFormat(codec, fps=fps)
    path = tmp_path / "film.mp4"
    with SegmentedWriter(path, 64, 48, video_format) as writer:
        write_segments(writer, range(3))
        growing, final = writer.growing_path, writer.finish(keep_growing=True)
    for film in (growing, final):
        info = probe(film)
        assert (info.frames, info.width, info.height, info.codec) == (12, 64, 48, FFMPEG_NAMES[codec])
        assert info.fps == video_format.rate
        ticks, tick = timestamps(film)
        assert ticks == [frame * video_format.ticks_per_frame for frame in range(12)]
        assert tick == pytest.approx(1 / video_format.timescale)
    difference = np.abs(np.stack(list(read_frames(final))).astype(int) - picture(0, 12)).mean()
    print(f"{codec}: mean difference {difference:.2f} levels")
    assert difference == 0 if codec == "lossless" else difference < 4


def test_the_default_is_what_browsers_play(tmp_path):
    with av.open(str(finished(tmp_path / "film.mp4", VideoFormat(), segments=1))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.codec_tag, stream.codec_context.pix_fmt) == ("avc1", "yuv420p")
        assert stream.average_rate == 16
    boxes = (tmp_path / "film.mp4").read_bytes()
    assert boxes.index(b"moov") < boxes.index(b"mdat"), "the index is in front"


@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("codec", CODECS)
def test_segments_of_any_length_join_without_a_gap(tmp_path, codec, frames):
    video_format = VideoFormat(codec)
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, video_format) as writer:
        writer.write(picture(0, frames))
        writer.end_segment()
        writer.write(picture(frames, 12))
        final = writer.finish()
    assert timestamps(final)[0] == [frame * video_format.ticks_per_frame for frame in range(frames + 12)]


def test_the_film_plays_after_every_segment(tmp_path):
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer:
        for segment in range(4):
            writer.write(picture(segment * 4))
            assert (writer.frames_written, writer.safe_frames) == (segment * 4 + 4, segment * 4)
            writer.end_segment()
            assert writer.safe_frames == writer.frames_written == probe(writer.growing_path).frames
            seen = np.stack(list(read_frames(writer.growing_path)))
            assert np.abs(seen.astype(int) - picture(0, segment * 4 + 4)).mean() < 4


@pytest.mark.parametrize("codec, kept", [("h264", (0, 1, 3)), ("h265", (2,)), ("av1", (2,)), ("lossless", (2,))])
def test_a_continued_film_is_byte_for_byte_the_unbroken_one(tmp_path, codec, kept):
    video_format = VideoFormat(codec)
    with SegmentedWriter(tmp_path / "unbroken.mp4", 64, 48, video_format) as writer:
        write_segments(writer, range(4))
        unbroken = writer.growing_path.read_bytes()
        whole = writer.finish().read_bytes()
    path = tmp_path / "continued.mp4"
    growing = grown_film(path, video_format, segments=3)
    three = growing.read_bytes()
    for done in kept:
        growing.write_bytes(three)
        with SegmentedWriter(path, 64, 48, video_format, first_segment=done) as writer:
            assert writer.frames_written == done * 4
            write_segments(writer, range(done, 4))
            assert writer.growing_path.read_bytes() == unbroken
            assert writer.finish().read_bytes() == whole


def test_continuing_cuts_off_what_is_not_kept(tmp_path):
    one = grown_film(tmp_path / "one.mp4", VideoFormat(), segments=1).read_bytes()
    growing = grown_film(tmp_path / "film.mp4", VideoFormat(), segments=3)
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat(), first_segment=1):
        assert growing.read_bytes() == one


def test_an_error_in_the_middle_of_a_segment_keeps_what_was_written(tmp_path):
    def broken_render():
        with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer:
            write_segments(writer, range(2))
            writer.write(picture(8, 3))
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        broken_render()
    assert probe(tmp_path / "film.growing.mp4").frames == 11
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat(), first_segment=2) as writer:
        write_segments(writer, range(2, 4))
        continued = writer.growing_path.read_bytes()
    assert continued == grown_film(tmp_path / "unbroken.mp4", VideoFormat(), segments=4).read_bytes()


def test_abort_drops_the_open_segment_only(tmp_path):
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer:
        write_segments(writer, range(2))
        writer.write(picture(8, 3))
        writer.abort()
        assert not encoders()
    assert probe(writer.growing_path).frames == writer.frames_written == 8
    with pytest.raises(PackForcingError, match="closed"):
        writer.write(picture(8))


def test_a_kept_growing_film_can_be_extended(tmp_path):
    path = tmp_path / "film.mp4"
    with SegmentedWriter(path, 64, 48, VideoFormat()) as writer:
        write_segments(writer, range(2))
        writer.finish(keep_growing=True)
    with SegmentedWriter(path, 64, 48, VideoFormat(), first_segment=2) as writer:
        write_segments(writer, range(2, 3))
        writer.finish()
    assert path.read_bytes() == finished(tmp_path / "unbroken.mp4", VideoFormat(), segments=3).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.mp4", "unbroken.mp4"]


@pytest.mark.parametrize("width, height", [(63, 48), (64, 47), (65, 49)])
def test_odd_sizes_grow_by_repeating_the_last_row_and_column(tmp_path, width, height):
    with SegmentedWriter(tmp_path / "film.mp4", width, height, VideoFormat(quality=1)) as writer:
        writer.write(np.full((2, height, width, 3), 200, np.uint8))
        frames = np.stack(list(read_frames(writer.finish())))
    assert frames.shape == (2, height + height % 2, width + width % 2, 3)
    difference = np.abs(frames.astype(int) - 200).max()
    print(f"max difference, border included, {difference} levels")
    assert difference <= 2


def test_lossless_keeps_an_odd_size_and_every_value(tmp_path):
    noise = np.random.default_rng(3).integers(0, 256, (3, 49, 65, 3), np.uint8)
    with SegmentedWriter(tmp_path / "film.mp4", 65, 49, VideoFormat("lossless")) as writer:
        writer.write(noise)
        assert np.array_equal(np.stack(list(read_frames(writer.finish()))), noise)


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_flat_colours_come_back_and_are_tagged_bt709(tmp_path, codec):
    colours = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)]
    with SegmentedWriter(tmp_path / "film.mp4", 64, 64, VideoFormat(codec, quality=4)) as writer:
        for colour in colours:  # a segment each: nothing leaks in from the colour before
            writer.write(np.broadcast_to(np.uint8(colour), (1, 64, 64, 3)))
            writer.end_segment()
        final = writer.finish()
    difference = np.abs(np.stack(list(read_frames(final))).astype(int) - np.array(colours)[:, None, None]).max()
    print(f"{codec}: max difference {difference} levels")
    assert difference <= 4
    with av.open(str(final)) as container:
        frame = next(container.decode(video=0))
        bt709, tv = 1, 1
        assert (int(frame.colorspace), int(frame.color_range)) == (bt709, tv)
        context = container.streams.video[0].codec_context
        assert (int(context.color_primaries), int(context.color_trc)) == (bt709, bt709)


def test_metadata_comes_back_whole_even_when_it_is_large(tmp_path):
    workflow = {"nodes": [{"title": f"a=b;#\\ \n \u00e9 {number}"} for number in range(12_000)]}
    prompt = "line one\nline = two; # three \\ \u4e2d\u6587 \\n"
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer:
        writer.write(picture(0))
        writer.finish(metadata={"prompt": prompt, "workflow": workflow})
    with av.open(str(tmp_path / "film.mp4")) as container:
        found = container.metadata
    assert found["prompt"] == prompt
    assert len(found["workflow"]) > 400_000
    assert json.loads(found["workflow"]) == workflow


def test_many_segments_leave_nothing_open(tmp_path):
    process = psutil.Process()
    with SegmentedWriter(tmp_path / "film.mp4", 16, 16, VideoFormat()) as writer:
        write_segments(writer, range(3), frames=1)
        before = (len(process.open_files()), process.num_fds() if psutil.POSIX else 0, threading.active_count())
        write_segments(writer, range(3, 30), frames=1)
        after = (len(process.open_files()), process.num_fds() if psutil.POSIX else 0, threading.active_count())
        assert after == before
        assert not encoders()
        assert probe(writer.finish()).frames == 30


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 48, 64, 3), np.float32),
        np.zeros((4, 64, 48, 3), np.uint8),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((4, 3, 48, 64), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused_and_the_film_goes_on(tmp_path, frames):
    with SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer:
        with pytest.raises(PackForcingError, match=r"Got frames .* expected uint8 \[T, 48, 64, 3\]"):
            writer.write(frames)
        writer.write(picture(0))
        assert probe(writer.finish()).frames == 4


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(PackForcingError, match=r"video .*file.* cannot be written"):
        SegmentedWriter(tmp_path / "file" / "film.mp4", 64, 48, VideoFormat())


def test_a_size_that_the_codec_cannot_do_is_refused_before_any_work(tmp_path):
    with pytest.raises(PackForcingError, match=r"h264 cannot encode 20000x20000 here.*last output"):
        SegmentedWriter(tmp_path / "film.mp4", 20_000, 20_000, VideoFormat())
    with pytest.raises(PackForcingError, match="expected a size of 1x1"):
        SegmentedWriter(tmp_path / "film.mp4", 0, 48, VideoFormat())
    assert not list(tmp_path.iterdir())


def test_another_file_type_is_refused(tmp_path):
    with pytest.raises(PackForcingError, match=r"film\.webm.*\.mp4"):
        SegmentedWriter(tmp_path / "film.webm", 64, 48, VideoFormat())


def test_finishing_without_frames_is_refused(tmp_path):
    with (
        SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat()) as writer,
        pytest.raises(PackForcingError, match="no frames"),
    ):
        writer.finish()


def test_continuing_beyond_what_is_there_says_how_far_it_goes(tmp_path):
    growing = grown_film(tmp_path / "film.mp4", VideoFormat(), segments=2)
    before = growing.read_bytes()
    with pytest.raises(VideoError, match="has 2 complete segments, but 3 were expected"):
        SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat(), first_segment=3)
    assert growing.read_bytes() == before


@pytest.mark.parametrize("other", [VideoFormat("h265"), VideoFormat(fps=24), VideoFormat(quality=30)])
def test_continuing_with_other_settings_is_refused(tmp_path, other):
    growing = grown_film(tmp_path / "film.mp4", VideoFormat(), segments=2)
    before = growing.read_bytes()
    with pytest.raises(VideoError, match="another size, codec, quality or frame rate"):
        SegmentedWriter(tmp_path / "film.mp4", 64, 48, other, first_segment=1)
    assert growing.read_bytes() == before
    assert len(scan_video(growing).segments) == 2


def test_an_encoder_that_this_ffmpeg_lacks_is_named_with_the_remedy(tmp_path, monkeypatch):
    """As that of imageio-ffmpeg 0.6, which has no AV1."""
    lacking = replace(CODECS["av1"], arguments=("-c:v", "libnothing", "-preset", "8"))
    monkeypatch.setitem(CODECS, "av1", lacking)
    with pytest.raises(PackForcingError, match=r"without libnothing, which codec av1 needs\. Choose another") as said:
        SegmentedWriter(tmp_path / "film.mp4", 64, 48, VideoFormat("av1"))
    print(said.value)
    assert {codec.encoder for codec in CODECS.values()} == {"libx264", "libx265", "libnothing", "libx264rgb"}
