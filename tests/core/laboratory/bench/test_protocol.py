"""The whole measurement on a model so small that it takes seconds: what it reports, not how fast it is."""

from __future__ import annotations

import json

import pytest
import torch

from packforcing_core.cli.main import main
from packforcing_core.laboratory.bench import subject
from packforcing_core.laboratory.bench.protocol import BARE, PARTS, WINDOW, measure
from packforcing_core.laboratory.bench.report import markdown
from packforcing_core.laboratory.bench.subject import Plan, Scale, Stream, build_model
from packforcing_core.model.config import WanConfig
from packforcing_core.vae.config import VAEConfig
from tests.kept import kept

pytestmark = pytest.mark.integration

TINY = Scale(
    "tiny",
    WanConfig(dim=128, ffn_dim=128, num_layers=2, num_heads=1, text_dim=16, text_len=8, freq_dim=32),
    VAEConfig(encoder_dim=8, decoder_dim=8, num_res_blocks=1),
    width=64,
    height=48,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result():
    heard = []
    measured = measure(Plan(TINY, CPU, torch.float32, rounds=2, repeats=2, positions=(5, 21, 40)), heard.append)
    assert heard == ["blocks in turns", "decoding", "recording and resuming", "kernels"]
    return measured


def test_everything_is_measured_and_json_can_hold_it(result):
    again = json.loads(json.dumps(result))
    assert again["flatness"] > 0
    assert set(again["split"]) == set(PARTS)
    assert all(seconds > 0 for seconds in again["split"].values())
    assert set(again["samples"]) == {"block 5", "block 21", "block 40", BARE, WINDOW}
    assert again["growth"]["block 21"] == 1.0
    assert again["flatness"] == again["growth"]["block 40"]
    assert all(len(seconds) == 2 for seconds in again["samples"].values())
    assert all(share > 0 for share in again["roofline_share"].values())
    assert all(fps > 0 for fps in again["fps"].values())
    assert again["bytes"]["constant"]


def test_recording_and_resuming_are_measured_in_the_work_that_they_take(result):
    """Sense, not speed: a resume denoises nothing, and so takes less than the render had; recording is a small part."""
    print(f"recorded over bare {result['recorded_over_bare']:.3f}, resume share {result['resume_share']:.3f}")
    assert 0.5 < result["recorded_over_bare"] < 3
    assert 0 < result["resume_share"] < 1
    page = markdown(result)
    assert f"| {result['recorded_over_bare']:.3f} |" in page
    assert "| resuming after 40 blocks over sampling them |" in page


def test_a_cpus_page_has_ratios_and_no_seconds(result):
    page = markdown(result)
    assert "flatness" in page
    assert "TFLOP/s" not in page
    assert "FPS, transformer only" not in page
    gpu = {**result, "settings": {**result["settings"], "device_type": "cuda"}}
    assert "FPS, transformer only" in markdown(gpu)
    assert "TFLOP/s" in markdown(gpu)


def test_a_skipped_stream_sees_what_a_rendered_one_does():
    model = build_model(TINY, CPU, torch.float32)
    skipped, rendered = Stream(model, TINY), Stream(model, TINY)
    skipped.skip(22)
    for _ in range(22):
        rendered.block()
    assert skipped.cache.begin_block().window == rendered.cache.begin_block().window
    assert skipped.cache.mid.blocks == rendered.cache.mid.blocks
    assert skipped.compression.waiting.keys() == rendered.compression.waiting.keys()
    skipped.block()


def test_a_stream_that_stays_makes_the_same_block_again():
    model = build_model(TINY, CPU, torch.float32)
    stream = Stream(model, TINY).placed(21).stay()
    before = stream.cache.begin_block().window
    made = []
    for _ in range(3):
        stream.block()
        made.append(kept(stream.cache))
        assert stream.cache.next_block == 21
        stream.again()
        assert stream.cache.next_block == 20
        assert stream.cache.begin_block().window == before
    first, *others = made
    for tensors in others:
        pairs = ((tensor, first[name]) for name, tensor in tensors.items() if tensor.numel())
        differences = [(tensor - before).abs().max().item() for tensor, before in pairs]
        print(f"largest difference of {len(differences)} tensors {max(differences):.1e}")
        assert max(differences) == 0


def test_the_command_writes_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(subject.SCALES, "quick", TINY)
    folder = tmp_path / "out"
    assert main(["bench", "--quick", "--json", "--rounds", "1", "--output", str(folder), "--plot"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["flatness"] == json.loads((folder / "bench.json").read_text())["flatness"]
    assert (folder / "bench.md").read_text().startswith("scale tiny")
    assert (folder / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_wrong_options_are_refused_with_what_helps(capsys):
    assert main(["bench", "--plot"]) == 1
    assert "--output" in capsys.readouterr().err
    assert main(["bench", "--rounds", "0"]) == 1
    assert "expected 1 or more" in capsys.readouterr().err
    assert main(["bench", "--attention", "flash3", "--device", "cpu"]) == 1
    assert "expected one of sdpa or auto" in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_is_missing(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(subject.SCALES, "quick", TINY)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["bench", "--quick", "--rounds", "1", "--output", str(tmp_path), "--plot"]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert (tmp_path / "bench.json").exists()
