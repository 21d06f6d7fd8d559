"""Videos and images as phones, editors and old cameras write them: each is made here by ffmpeg or Pillow."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from itertools import product

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from packforcing_core.source import at_rate
from packforcing_core.video import VideoError, probe, read_frames
from packforcing_core.video.packets import _Packet, _timed

WIDTH, HEIGHT = 64, 32
CORNERS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def corners(width=WIDTH, height=HEIGHT):
    """Red, green, blue and white quarters, uint8 [H, W, 3]: every turn and every mirror image looks different."""
    shown = np.zeros((height, width, 3), np.uint8)
    for (row, column), colour in zip(product((0, 1), (0, 1)), CORNERS.values(), strict=True):
        shown[row * height // 2 :, column * width // 2 :] = colour
    return shown


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    path = tmp_path_factory.mktemp("still") / "corners.png"
    Image.fromarray(corners()).save(path)
    return path


def encode(still, path, *options, seconds=0.5, rate=16):
    ffmpeg("-loop", 1, "-framerate", rate, "-i", still, "-t", seconds, *options, path)
    return path


def closest(frame):
    """The middle of each quarter of a frame as the name of the colour it is next to."""
    rows, columns = frame.shape[0] // 4, frame.shape[1] // 4
    seen = [frame[rows * r, columns * c].astype(int) for r, c in product((1, 3), (1, 3))]
    return [min(CORNERS, key=lambda name: np.abs(pixel - CORNERS[name]).sum()) for pixel in seen]


def mean_difference(got, want):
    return np.abs(got.astype(int) - want.astype(int)).mean()


FILES = {
    "h264.mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "h265.mp4": ("-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p"),
    "h264.mov": ("-c:v", "libx264", "-pix_fmt", "yuv444p"),
    "prores.mov": ("-c:v", "prores_ks"),
    "h264.mkv": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "ffv1.mkv": ("-c:v", "ffv1"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-pix_fmt", "yuv420p"),
    "xvid.avi": ("-c:v", "mpeg4", "-bf", "2", "-vtag", "XVID", "-q:v", "2"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "2"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-q:v", "2"),
    "theora.ogv": ("-c:v", "libtheora", "-q:v", "9"),
    "wmv.wmv": ("-c:v", "wmv2", "-q:v", "2"),
}
TURNABLE = tuple(name for name in FILES if name.endswith((".mp4", ".mov", ".mkv", ".webm")))
RATES = {"mpeg2.ts": 25}  # MPEG-2 knows no 16, and of shapes only those of pictures of 4:3 and 16:9
SHAPES = {"mpeg2.ts": ((8, 9), (2, 3))}


@pytest.mark.parametrize("name", FILES)
def test_containers_and_codecs_with_square_and_other_pixels(still, tmp_path, name):
    rate = RATES.get(name, 16)
    for across, down in SHAPES.get(name, ((1, 1), (4, 3), (8, 9))):
        path = encode(still, tmp_path / name, "-vf", f"setsar={across}/{down}", *FILES[name], rate=rate)
        info, frames = probe(path), list(read_frames(path))
        width, height = (round(WIDTH * across / down), HEIGHT) if across > down else (WIDTH, HEIGHT * down // across)
        kept = [note for note in info.notes if "not square" in note]
        if not kept:  # AVI has no place for the pixels' shape, and not every codec has
            width, height = WIDTH, HEIGHT
            assert across == down or name == "mjpeg.avi"
        assert (info.width, info.height, info.frames, info.fps) == (width, height, len(frames), rate)
        assert len(frames) == rate // 2 + rate % 2
        assert {frame.shape for frame in frames} == {(height, width, 3)}
        assert closest(frames[0]) == list(CORNERS)


TURNS = {
    "0": ((), lambda shown: shown, None),
    "90": (("-display_rotation:v:0", 90), lambda shown: np.rot90(shown, 1), "turned by 90 degrees,"),
    "180": (("-display_rotation:v:0", 180), lambda shown: np.rot90(shown, 2), "turned by 180 degrees or mirrored,"),
    "270": (("-display_rotation:v:0", 270), lambda shown: np.rot90(shown, 3), "turned by 90 degrees,"),
    "mirrored": (("-display_hflip:v:0",), lambda shown: shown[:, ::-1], "turned by 180 degrees or mirrored,"),
    "upside down": (("-display_vflip:v:0",), lambda shown: shown[::-1], None),
}


@pytest.mark.parametrize("name", TURNABLE)
def test_a_clip_that_metadata_turns_is_upright(still, tmp_path, name):
    flat = {
        sar: encode(still, tmp_path / f"{sar}-{name}", "-vf", f"setsar={sar}/1", *FILES[name], seconds=0.25)
        for sar in (1, 2)
    }
    for (turn, (options, turned, said)), sar in product(TURNS.items(), flat):
        path = tmp_path / f"turned-{name}"
        ffmpeg(*options, "-i", flat[sar], "-c", "copy", path)
        frame = next(read_frames(path))
        want = turned(corners(WIDTH * sar))
        info = probe(path)
        assert frame.shape == want.shape == (info.height, info.width, 3), turn
        assert closest(frame) == closest(want), turn
        told = [note for note in info.notes if "not square" not in note]
        assert told == ([f"It is {said} as its rotation flag says."] if said else []), turn


@pytest.mark.parametrize("name", [name for name in FILES if name not in TURNABLE])
def test_a_container_that_stores_no_turn_is_shown_as_it_is(still, tmp_path, name):
    flat = encode(still, tmp_path / f"flat-{name}", *FILES[name], seconds=0.25, rate=RATES.get(name, 16))
    ffmpeg("-display_rotation:v:0", 90, "-i", flat, "-c", "copy", tmp_path / name)
    frame = next(read_frames(tmp_path / name))
    assert frame.shape == corners().shape
    assert closest(frame) == list(CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_exif_turns_is_upright(tmp_path, orientation):
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 3),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("photo.jpg", "photo.png", "photo.webp", "photo.tif"):
        path = tmp_path / name
        Image.fromarray(corners()).save(path, exif=exif)
        (frame,) = read_frames(path)
        want = turned[orientation](corners())
        assert frame.shape == want.shape == (probe(path).height, probe(path).width, 3)
        assert closest(frame) == closest(want), name


def test_images_of_every_mode_and_what_is_transparent(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))
    half = Image.new("RGBA", (8, 8), (200, 100, 50, 128))
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([255, 255, 255, *[0] * 765])
    cases = {
        "grey.png": (grey, (128, 128, 128), 0),
        "half.png": (half, (100, 50, 25), 1),
        "opaque.png": (Image.new("RGBA", (8, 8), (200, 100, 50, 255)), (200, 100, 50), 0),
        "clear.png": (clear, (0, 0, 0), 1),
        "print.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), (255, 255, 255), 0),
        "bits.png": (Image.new("1", (8, 8), 1), (255, 255, 255), 0),
    }
    for name, (image, colour, notes) in cases.items():
        image.save(tmp_path / name, **({"transparency": 0} if image.mode == "P" else {}))
        frame = next(read_frames(tmp_path / name))
        assert np.abs(frame.astype(int) - colour).max() <= 2, name
        assert len(probe(tmp_path / name).notes) == notes, name


@pytest.mark.parametrize(
    "content", [b"\0\0\0\x18ftypheic" + bytes(99), b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xd8\xff\xe0" + bytes(50)]
)
def test_an_image_that_cannot_be_read_says_how_to_save_it(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(VideoError, match=r"photo\.jpg cannot be read.*JPEG or PNG"):
            read(tmp_path / "photo.jpg")


@pytest.mark.parametrize(("codec", "frames"), [(("mpeg4", "-bf", "2"), 32), (("libx264", "-bf", "3"), 32)])
def test_an_avi_without_times_of_display_runs_at_its_own_rate(tmp_path, codec, frames):
    path = tmp_path / "old.avi"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x32:rate=16:duration=2", "-pix_fmt", "yuv420p", "-c:v", *codec, path)
    info = probe(path)
    assert (info.frames, info.fps, info.notes) == (frames, 16, ())
    again = list(at_rate(read_frames(path), float(info.fps), 16.0))
    assert len(np.unique(np.stack(again), axis=0)) == frames


def test_a_variable_rate_becomes_a_constant_one_and_nothing_runs_early(tmp_path):
    """Grey levels tell the moment: half a second at 16 FPS, one frame that stands for a second, then 16 FPS again."""
    path = tmp_path / "phone.mkv"
    level = "color=black:size=64x32:rate=16:duration=2,format=gray,geq=lum='8*N'"
    late = "setpts='if(lt(N,8),N,N+15)/16/TB'"
    ffmpeg("-f", "lavfi", "-i", level, "-vf", late, "-fps_mode", "passthrough", "-c:v", "ffv1", path)
    info, frames = probe(path), list(read_frames(path))
    print(info)
    assert abs(float(info.fps) - 16) < 0.3
    assert len(frames) == info.frames
    assert any("varies" in note for note in info.notes)
    for place, frame in enumerate(frames):
        second = float(place / info.fps)
        want = second * 16 if second < 0.5 else 7 if second < 23 / 16 - 0.01 else second * 16 - 15
        assert abs(frame.mean() / 8 - want) < 1.2, (place, second, frame.mean() / 8, want)


def test_what_an_edit_list_cuts_off_is_not_counted(tmp_path):
    flat, cut = tmp_path / "flat.mp4", tmp_path / "cut.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x32:rate=16:duration=1", "-pix_fmt", "yuv420p", flat)
    ffmpeg("-ss", "0.3", "-i", flat, "-c", "copy", cut)
    assert probe(cut).frames == len(list(read_frames(cut))) < 16
    assert probe(cut).fps == 16


def test_fields_become_whole_frames(tmp_path):
    path = tmp_path / "camcorder.mkv"
    moving = "color=black:size=64x32:rate=50:duration=1,format=yuv420p,geq=lum='if(lt(mod(X+4*N,64),32),16,235)'"
    ffmpeg("-f", "lavfi", "-i", moving, "-vf", "interlace=lowpass=0", "-c:v", "ffv1", path)
    frames = np.stack(list(read_frames(path))).astype(int)
    combed = np.abs(frames[1:-1, 1:] - frames[1:-1, :-1]).mean()
    print(f"rows differ from the next by {combed:.1f} levels")
    assert len(frames) == probe(path).frames == 25
    assert any("interlaced" in note for note in probe(path).notes)
    assert combed < 10  # 16 where the fields stay woven


def test_transparent_video_is_shown_on_black(tmp_path):
    half = tmp_path / "half.png"
    Image.new("RGBA", (WIDTH, HEIGHT), (200, 100, 50, 128)).save(half)
    for name, codec in (("a.mov", ("qtrle",)), ("b.mkv", ("ffv1",)), ("c.mov", ("prores_ks", "-profile:v", "4444"))):
        encode(half, tmp_path / name, "-c:v", *codec, seconds=0.25)
        frame = next(read_frames(tmp_path / name))
        assert np.abs(frame.mean(axis=(0, 1)) - (100, 50, 25)).max() < 4, name
        assert any("transparency" in note for note in probe(tmp_path / name).notes)


@pytest.mark.parametrize(("curve", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_mapped_to_standard_range_and_said(tmp_path, curve, name):
    path = tmp_path / "hdr.mp4"
    ramp = "color=black:size=64x32:rate=16:duration=0.25,format=yuv420p10le,geq=lum='64+12*X':cb=512:cr=512"
    tags = f"setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={curve}:range=tv"
    colours = f"log-level=error:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc:lossless=1"
    ffmpeg("-f", "lavfi", "-i", ramp, "-vf", tags, "-c:v", "libx265", "-x265-params", colours, path)
    levels = next(read_frames(path)).astype(int).mean(axis=(0, 2))
    print("every eighth column", levels[::8].round())
    assert (np.diff(levels) >= -1).all()
    assert levels[0] < 10
    assert levels[-1] > 200
    assert np.ptp(next(read_frames(path)).astype(int), axis=2).max() <= 3  # grey stays grey
    assert any(f"HDR ({name})" in note for note in probe(path).notes)


def test_untagged_colours_are_high_definition_s_above_576_rows(tmp_path):
    seen = {}
    for height in (480, 720):
        path = tmp_path / f"{height}.mkv"
        red = f"color=red:size=1024x{height}:rate=16:duration=0.1"
        untagged = "scale=out_color_matrix=bt601,format=yuv420p,setparams=colorspace=unknown"
        ffmpeg("-f", "lavfi", "-i", red, "-vf", untagged, "-c:v", "ffv1", path)
        seen[height] = next(read_frames(path))[5, 5].astype(int)
    print(seen)
    assert np.abs(seen[480] - (255, 0, 0)).max() <= 3
    assert np.abs(seen[720] - seen[480]).max() > 10


def test_what_is_left_out_of_a_file_is_said(still, tmp_path):
    film, sung, many = (tmp_path / name for name in ("film.mp4", "sung.mp4", "many.mkv"))
    encode(still, film, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    ffmpeg("-i", film, "-f", "lavfi", "-i", "sine=duration=0.5", "-c:v", "copy", "-c:a", "aac", sung)
    ffmpeg("-i", sung, "-i", film, "-map", "0", "-map", "1", "-c", "copy", many)
    sound, videos = "The video's sound is ignored.", "It holds 2 videos: only the first is used."
    assert [probe(path).notes for path in (film, sung, many)] == [(), (sound,), (sound, videos)]
    assert len(list(read_frames(sung))) == len(list(read_frames(many))) == 8


def test_a_cover_picture_is_not_the_video(still, tmp_path):
    film, song = tmp_path / "film.mp4", tmp_path / "song.mp4"
    encode(still, film, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    ffmpeg("-i", still, "-i", film, "-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic", song)
    assert probe(song).frames == len(list(read_frames(song))) == 8
    assert probe(song).notes == ()


def test_a_video_that_changes_its_size_keeps_that_of_its_first_frame(still, tmp_path):
    streams = b""
    for place, size in enumerate(("64:32", "128:64")):
        part = encode(still, tmp_path / f"{place}.h264", "-vf", f"scale={size}", "-c:v", "libx264", seconds=0.25)
        streams += part.read_bytes()
    path = tmp_path / "changing.h264"
    path.write_bytes(streams)
    frames = list(read_frames(path))
    assert len(frames) == probe(path).frames == 8
    assert all(closest(frame) == list(CORNERS) and frame.shape == (32, 64, 3) for frame in frames)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period/></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(still, tmp_path, text):
    encode(still, tmp_path / "secret.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    path = tmp_path / "holiday.mp4"
    path.write_text(text)
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(VideoError, match=r"holiday\.mp4 cannot be read"):
            read(path)


def test_odd_sizes_and_full_colour_are_read_whole(tmp_path):
    image = tmp_path / "odd.png"
    Image.fromarray(corners(63, 31)).save(image)
    path = encode(image, tmp_path / "odd.mp4", "-c:v", "libx264", "-pix_fmt", "yuv444p", seconds=0.25)
    frame = next(read_frames(path))
    assert frame.shape == (31, 63, 3)
    assert closest(frame) == list(CORNERS)


TICKS = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 40)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    packets=st.lists(st.builds(_Packet, TICKS, TICKS, st.integers(-5, 2**40)), min_size=1, max_size=12),
    tick=st.fractions(min_value=Fraction(1, 90000), max_value=1, max_denominator=90000).filter(bool),
)
def test_any_times_give_a_rate_and_a_count(packets, tick):
    timed = _timed(packets, tick, "h264")
    assert timed.rate > 0
    assert timed.frames == (len(packets) if timed.repeats is None else sum(timed.repeats))
    assert timed.frames <= 24 * 3600 * 240 + 1
    if timed.repeats is not None:
        assert len(timed.repeats) == len(packets)
        assert min(timed.repeats) >= 0


def damaged_film(still, folder, data):
    path = folder / "film.mp4"
    if not path.exists():
        encode(still, path, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "faststart")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged.mp4").write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    return folder / "damaged.mp4"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_video_is_refused_or_read(still, tmp_path, data):
    path = damaged_film(still, tmp_path, data)
    try:
        info = probe(path)
        both = (read_frames(path), read_frames(path, info.frames // 2))
        shapes = {frame.shape for frames in both for frame, _ in zip(frames, range(40), strict=False)}
    except VideoError:
        return
    assert shapes <= {(info.height, info.width, 3)}
