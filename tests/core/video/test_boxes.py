from __future__ import annotations

import re
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packforcing_core.video import VideoError, VideoFormat, scan_video
from tests.films import grown_film


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return grown_film(tmp_path_factory.mktemp("film") / "film.mp4", VideoFormat(), segments=3)


def test_the_segments_of_a_film_are_found_by_reading_it(film):
    found = scan_video(film)
    assert [segment.frames for segment in found.segments] == [4, 4, 4]
    assert found.end(3) == film.stat().st_size
    assert found.frames(2) == 8
    assert found.end(0) == len(found.init)


def test_any_cut_leaves_exactly_the_segments_before_it(film, tmp_path):
    data, whole = film.read_bytes(), scan_video(film)
    cut = tmp_path / "cut.mp4"
    for size in range(len(whole.init), len(data), 97):
        cut.write_bytes(data[:size])
        expected = tuple(segment for segment in whole.segments if segment.end <= size)
        assert scan_video(cut).segments == expected


def test_segments_are_numbered_in_the_order_they_are_shown(film):
    data = film.read_bytes()
    places = [place.end() for place in re.finditer(b"mfhd", data)]
    assert [struct.unpack_from(">I", data, place + 4)[0] for place in places] == [1, 2, 3]


def test_a_box_without_a_length_ends_the_film_before_it(film, tmp_path):
    data = bytearray(film.read_bytes())
    second = [place.start() for place in re.finditer(b"traf", data)][1]
    struct.pack_into(">I", data, second - 4, 0)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    assert len(scan_video(damaged).segments) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=9)), max_size=6))
def test_a_damaged_film_never_breaks_the_scan(film, tmp_path, edits):
    data = bytearray(film.read_bytes())
    for place, junk in edits:
        place %= len(data)
        data[place : place + len(junk)] = junk
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    try:
        found = scan_video(damaged)
    except VideoError:
        return
    assert found.end(len(found.segments)) <= len(data)


@pytest.mark.parametrize("content", [b"", b"ftyp", b"\0" * 500, b"not a film at all" * 50])
def test_other_files_are_refused(tmp_path, content):
    other = tmp_path / "other.mp4"
    other.write_bytes(content)
    with pytest.raises(VideoError, match="not a growing video"):
        scan_video(other)


def test_a_missing_film_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4"):
        scan_video(tmp_path / "gone.mp4")
