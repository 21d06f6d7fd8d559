"""`packforcing renders` tells what lies in a folder and removes what is named, nothing else."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.cli.main import main
from packforcing_core.folder.files import locked
from packforcing_core.folder.folder import FINISHED
from packforcing_core.folder.listing import WORTH_NAMING, newest_note, others_note
from packforcing_core.geometry import size_text
from packforcing_core.sampler.denoising import BlockDone
from tests.survivor import Small


@pytest.fixture
def root(tmp_path):
    """A finished render, an unfinished one, and a folder of the user's own."""
    for name, blocks in (("done", 3), ("begun", 2)):
        folder = Small(blocks=3).open(tmp_path, name)
        for block in range(blocks):
            folder.blocks.save(BlockDone(block, torch.zeros(folder.blocks.shape)))
    (tmp_path / "done" / FINISHED).write_text("{}", encoding="utf-8")
    (tmp_path / "holidays").mkdir()
    (tmp_path / "holidays" / "a.txt").write_text("mine", encoding="utf-8")
    return tmp_path


def test_renders_are_listed_with_size_age_and_state(root, capsys):
    assert main(["renders", str(root)]) == 0
    said = capsys.readouterr().out
    print(said)
    rows = {line.split()[0]: line for line in said.splitlines()}
    assert "  finished  " in rows["done"]
    assert "  unfinished: 2 of 3 blocks  " in rows["begun"]
    assert "just now" in rows["begun"]
    assert "2.1 s, 48x32, packforcing, seed 7" in rows["begun"]
    assert "holidays" not in said
    assert said.splitlines()[-1].startswith("2 renders, ")


def test_a_renders_own_folder_is_found_too(root, capsys, monkeypatch):
    monkeypatch.chdir(root / "begun")
    for folder in (".", str(root / "begun"), "../begun", "blocks/.."):
        assert main(["renders", folder]) == 0
        said = capsys.readouterr().out
        print(said)
        assert said.startswith("begun ")
        assert "  unfinished: 2 of 3 blocks  " in said
        assert said.splitlines()[-1].startswith("1 render, ")


def test_without_a_folder_it_is_the_one_where_demo_and_render_put_theirs(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert main(["renders"]) == 0
    assert "begun " in capsys.readouterr().out


def test_where_there_is_none_it_says_where_they_are(tmp_path, capsys):
    assert main(["renders", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    print(said)
    assert f"No renders in {tmp_path}." in said
    assert "is removed when the video is finished" in said
    assert "B" not in said.replace(str(tmp_path), ""), "nothing has no size"


def test_only_what_is_named_is_removed(root, capsys):
    assert main(["renders", str(root), "--clean", "begun"]) == 0
    print(capsys.readouterr().out)
    assert sorted(path.name for path in root.iterdir()) == ["done", "holidays"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("holidays", "no render 'holidays'"), ("../x", "Got the render name"), ("nothing", "no render 'nothing'")],
)
def test_what_is_no_render_is_not_removed(root, capsys, name, message):
    assert main(["renders", str(root), "--clean", name]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["begun", "done", "holidays"]


def test_a_render_at_work_is_left_alone(root, capsys):
    with locked(root / "begun"):
        assert main(["renders", str(root), "--clean", "begun"]) == 1
    assert "is in use" in capsys.readouterr().err
    assert (root / "begun" / "manifest.json").exists()


@pytest.mark.parametrize("large", [False, True])
def test_a_node_tells_of_the_other_unfinished_renders(root, large: bool):
    if large:
        with open(root / "begun" / "film.mp4", "wb") as file:
            file.truncate(WORTH_NAMING)
    (line,) = others_note(root, root / "done")
    print(line)
    size = sum(path.stat().st_size for path in (root / "begun").rglob("*") if path.is_file())
    told = f"1 other unfinished render takes {size_text(size)} in {root}"
    assert line == (f"{told}: begun. Delete the folders that you no longer need." if large else f"{told}.")
    assert others_note(root, root / "begun") == ()
    assert "begun" in newest_note(root)
    assert newest_note(root / "nowhere").startswith("There is none")
    assert others_note(root / "nowhere", root) == ()


def test_a_folder_above_comfyuis_renders_says_where_they_are(tmp_path, capsys):
    (tmp_path / "packforcing").mkdir()
    assert main(["renders", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    print(said)
    assert str(tmp_path / "packforcing") in said
