"""`packforcing evaluate`: films in, a table, JSON, plots and a contact sheet out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packforcing_core.cli.main import main
from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.scene import KINDS, sample_scene
from packforcing_core.video import SegmentedWriter, VideoFormat
from tests.films import picture

pytestmark = pytest.mark.integration

pytest.importorskip("cv2")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


def write_film(path: Path, frames: np.ndarray) -> Path:
    with SegmentedWriter(path, frames.shape[2], frames.shape[1], VideoFormat("h264", quality=18, fps=16)) as writer:
        writer.write(frames)
        writer.finish()
    return path


def written_world(folder: Path, seed: int, kind: str, frames: int = 96) -> tuple[Path, str]:
    scene = sample_scene(np.random.default_rng(seed), kind)
    return write_film(folder / f"{kind}.mp4", draw(scene, frames)), describe(scene)


def test_films_of_the_little_world_pass_after_h264(tmp_path, capsys):
    films = [written_world(tmp_path, seed, kind) for seed, kind in enumerate(KINDS)]
    prompts = [word for _, prompt in films for word in ("--prompt", prompt)]
    out = tmp_path / "out"
    assert main(["evaluate", *(str(film) for film, _ in films), *prompts, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    print(said)
    assert "| checker: frames with everything right | 100.0% | 100.0% | 100.0% |" in said
    assert "CLIP and DINO were not measured: no --models." in said
    assert (out / "evaluation.md").read_text(encoding="utf-8").strip() == said.strip()
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert [film["little_world"]["right"] for film in told["films"]] == [1.0, 1.0, 1.0]
    assert [film["frames"] for film in told["films"]] == [96, 96, 96]
    for name in ("plots.png", "sheet.png"):
        with Image.open(out / name) as drawn:
            assert drawn.width > 600
            assert len(drawn.convert("RGB").getcolors(1 << 24)) > 20


def test_a_film_of_another_prompt_is_wrong(tmp_path, capsys):
    film, prompt = written_world(tmp_path, 5, "bounce")
    wrong = "a green triangle bounces on a grey background"
    assert prompt != wrong
    assert main(["evaluate", str(film), "--prompt", wrong, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["films"]
    assert told["little_world"]["right"] == 0.0


def test_any_film_is_measured_without_a_prompt(tmp_path, capsys):
    film = write_film(tmp_path / "waves.mp4", picture(0, 40))
    assert main(["evaluate", str(film), "--json", "--prompt", "waves of colour"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["films"]
    assert told["little_world"] is None
    assert told["frames"] == 40
    assert told["dynamic_degree"] == 1.0
    assert told["jumps"] == []


def test_a_film_of_another_size_is_measured_without_the_checker(tmp_path, capsys):
    film = write_film(tmp_path / "waves.mp4", picture(0, 8))
    assert main(["evaluate", str(film), "--prompt", "a red circle bounces on a dark background"]) == 0
    said = capsys.readouterr().out
    assert "waves.mp4: the checker needs 128 x 64 pixels or a whole multiple; this video has 64 x 48." in said
    assert "checker:" not in said


def test_prompts_that_do_not_fit_the_films_are_refused(tmp_path, capsys):
    assert main(["evaluate", "a.mp4", "b.mp4", "c.mp4", "--prompt", "one", "--prompt", "two"]) == 1
    assert "Got 2 prompts for 3 videos" in capsys.readouterr().err


def test_a_film_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "film.mp4").write_text("no film")
    assert main(["evaluate", str(tmp_path / "film.mp4")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_without_vbench_the_rest_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vbench", None)  # as where it is not installed
    film = write_film(tmp_path / "waves.mp4", picture(0, 4))
    assert main(["evaluate", str(film), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["films"][0]["vbench"] is None
    assert any("the package `vbench` is not installed" in note for note in told["notes"])


def test_a_missing_library_is_named_with_its_remedy(tmp_path):
    film, _ = written_world(tmp_path, 1, "bounce", frames=2)
    (tmp_path / "cv2.py").write_text("raise ImportError('no cv2 here')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from packforcing_core.cli.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + f"sys.exit(main(['evaluate', {str(film)!r}]))"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert "needs opencv-python-headless, which is not installed here" in done.stderr
    assert "pip install opencv-python-headless" in done.stderr
