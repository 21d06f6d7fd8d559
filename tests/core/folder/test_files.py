"""Files that are whole or not there, names that stay in their folder, one writer at a time."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from packforcing_core.errors import PackForcingError
from packforcing_core.folder.files import (
    UNFINISHED,
    FolderError,
    checked_name,
    copy_start,
    locked,
    read_tensors,
    remove_unfinished,
    write_json,
    write_tensors,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["a", "My render 2", "v1.0_final-2", "x" * 100])
def test_ordinary_names_are_taken(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "C:",
        "a:b",
        "con",
        "NUL.txt",
        "a.",
        "a ",
        " a",
        "-a",
        "x" * 101,
        "a\nb",
        "\0",
    ],
)
def test_names_that_lead_elsewhere_or_no_system_takes_are_refused(name):
    with pytest.raises(FolderError, match="Got the render name"):
        checked_name(name)


@given(st.text(max_size=120))
@example("com1.anything")
def test_any_name_is_refused_or_stays_in_its_folder(name):
    try:
        checked_name(name)
    except FolderError:
        return
    assert (Path("/anywhere/folder") / name).resolve().parent == Path("/anywhere/folder")
    assert name.isascii()


def test_tensors_and_plain_values_come_back_as_they_were(tmp_path):
    made = {"a": torch.randn(2, 3).to(torch.bfloat16), "b": torch.arange(4).flip(0), "empty": torch.zeros(0, 2)}
    write_tensors(tmp_path / "x.safetensors", made, {"list": [1, None, 0.1]})
    tensors, plain = read_tensors(tmp_path / "x.safetensors")
    assert plain == {"list": [1, None, 0.1]}
    assert all(torch.equal(tensors[name], made[name]) for name in made)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_bytes() == before
    remove_unfinished(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(FolderError, match="cannot be written"):
        write_json(tmp_path / "no" / "x.json", {})
    assert UNFINISHED not in [file.name for file in tmp_path.iterdir()]


def test_a_torch_file_and_a_pickle_that_would_run_code_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(FolderError, match="safetensors only"):
        read_tensors(path)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(PackForcingError):
        read_tensors(path)
    assert not (tmp_path / "ran").exists()


@given(st.data())
def test_any_damage_to_a_state_is_refused_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(2, 2)}, [1, 2])
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        read_tensors(path)
    except PackForcingError:
        return


def test_the_start_of_a_file_is_copied(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    copy_start(tmp_path / "a", tmp_path / "b", 4)
    assert (tmp_path / "b").read_bytes() == b"0123"


def test_a_second_holder_of_the_lock_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    hold = "import sys, time; from pathlib import Path; from packforcing_core.folder.files import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    words = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderError, match="is in use"), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path), pytest.raises(FolderError, match="is in use"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_lock_of_a_process_that_has_just_been_killed_is_waited_for(tmp_path):
    held = threading.Event()

    def hold():
        with locked(tmp_path):
            held.set()
            time.sleep(0.2)

    with ThreadPoolExecutor(1) as other:
        waits = other.submit(hold)
        held.wait()
        assert not waits.done()
        with locked(tmp_path):
            pass
