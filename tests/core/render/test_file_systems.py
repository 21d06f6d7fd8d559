"""File systems that refuse: found before sampling where it can be known, said in one sentence, and no work is lost."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.folder import files as files_module
from packforcing_core.folder.files import FolderError, locked
from packforcing_core.folder.room import room_notes
from packforcing_core.render import output as output_module
from packforcing_core.render.output import checked_output, require_writable
from packforcing_core.sampler.denoising import BlockDone
from tests.core.render.test_damage import difference
from tests.survivor import Small, frames

SMALL = Small("window", blocks=3)
MOUNTS = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk takes root on Linux"
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    SMALL.run(root)
    return frames(root)


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def refused(root: Path, small: Small = SMALL, **parts) -> tuple[str, list]:
    """What is said, in one line, and the events before it."""
    events: list = []
    with pytest.raises(PackForcingError) as error:
        events.extend(small.events(root, **parts))  # What came before the error is in the list.
    print(error.value)
    assert "\n" not in str(error.value)
    return str(error.value), events


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def test_a_share_without_locks_renders(tmp_path, monkeypatch, unbroken, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files_module.fcntl, "flock", flock)
    SMALL.run(tmp_path)
    assert difference(frames(tmp_path), unbroken) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_somebody_holds_is_no_missing_lock(tmp_path, monkeypatch, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files_module.fcntl, "flock", flock)
    with pytest.raises(FolderError, match="is in use"), locked(tmp_path):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fsync of folders")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM, errno.EIO])
def test_a_share_that_refuses_fsync_of_folders_renders(tmp_path, monkeypatch, unbroken, code):
    fsync = os.fsync

    def refusing(handle):
        if stat.S_ISDIR(os.fstat(handle if isinstance(handle, int) else handle.fileno()).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    SMALL.run(tmp_path)
    assert difference(frames(tmp_path), unbroken) == 0


@MOUNTS
def test_a_read_only_disk_is_said_before_anything_is_sampled(tmp_path):
    with disk(tmp_path / "disk", "-o", "size=16m") as root:
        SMALL.run(root)
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        said, events = refused(root, SMALL.but(seed=8), name="other")
        assert "Read-only file system" in said
        assert str(root / "other") in said
        assert events == []
        said, events = refused(root)  # A render that is there cannot go on either.
        assert "Read-only file system" in said
        assert events == []


@MOUNTS
def test_a_read_only_place_for_the_video_is_said_before_anything_is_sampled(tmp_path):
    with disk(tmp_path / "disk", "-o", "ro") as root:
        said, events = refused(tmp_path, output=str(root / "film.mp4"))
        assert f"No video can be written to {root}: Read-only file system" in said
        assert events == []


@MOUNTS
def test_a_disk_without_inodes_is_said_and_what_is_there_goes_on_when_there_are_some(tmp_path, unbroken):
    with disk(tmp_path / "disk", "-o", "size=16m,nr_inodes=3") as root:
        said, events = refused(root)
        assert "No space left on device" in said
        assert not any(isinstance(event, BlockDone) for event in events)
        subprocess.run(["mount", "-o", "remount,nr_inodes=16", root], check=True)
        said, _ = refused(root)
        assert "No space left on device" in said
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", root], check=True)
        SMALL.run(root)
        assert difference(frames(root), unbroken) == 0


@pytest.mark.parametrize(
    ("free", "said"), [(10**9, None), (25_000, "Warning"), (9_999, "Free disk space"), (0, "Free")]
)
def test_a_disk_that_is_too_small_is_said_before_anything_is_sampled(tmp_path, monkeypatch, free, said):
    folder = SMALL.open(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 0, free))
    if said is None:
        assert room_notes(folder, 10_000) == ()
    elif said == "Warning":
        (note,) = room_notes(folder, 10_000)
        print(note)
        assert "25 kB free" in note
        assert "30 kB more" in note
    else:
        with pytest.raises(FolderError, match=said) as error:
            room_notes(folder, 10_000)
        print(error.value)


def test_a_path_that_is_too_long_is_said_before_anything_is_sampled(tmp_path):
    deep = tmp_path.joinpath(*["x" * 250] * 20)
    said, events = refused(deep)
    assert "cannot be created" in said
    assert events == []
    said, events = refused(tmp_path, output=str(deep / "film.mp4"))
    assert "No video can be written" in said
    assert events == []


def test_room_for_the_longest_name_on_the_way_is_tried_and_nothing_stays(tmp_path, monkeypatch):
    made, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: made.append(path.name) or unlink(path))
    for stem in ("a", "a" * 180):
        require_writable(tmp_path / f"{stem}.mp4")
        on_the_way = (f"{stem[:60]}.12345678.unfinished.mp4", f"{stem}-100.mp4")
        assert len(made[-1]) >= max(map(len, on_the_way))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links take rights on Windows")
def test_a_link_in_the_place_of_what_a_render_writes_is_refused_before_anything_is_sampled(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "film").mkdir()
    (tmp_path / "film" / "blocks").symlink_to(outside)
    said, events = refused(tmp_path)
    assert "is a symbolic link" in said
    assert events == []
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["a:b.mp4", "what?.mp4", "con.mp4", "NUL.tar.mp4", "a|b.mp4", "tab\there.mp4"])
def test_names_that_windows_takes_for_something_else_are_refused_there(tmp_path, monkeypatch, name):
    assert checked_output(tmp_path / name)
    monkeypatch.setattr(output_module, "WINDOWS", True)
    with pytest.raises(PackForcingError, match="which is not a valid file name on Windows"):
        checked_output(tmp_path / name)
