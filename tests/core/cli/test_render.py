"""`packforcing render` from files on disk to a film that plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.checkpoint.build import build_model
from packforcing_core.checkpoint.load import read_checkpoint
from packforcing_core.cli.main import main
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.compressor.weights import CompressorInfo, save_compressor
from packforcing_core.video import probe, read_frames
from tests.checkpoints import SMALL, wan_state_dict

pytestmark = pytest.mark.integration


def render(files: Path, output: Path, *arguments: str, **changed: str) -> int:
    """Runs the command at 64x32 for 1 s; `changed` replaces files by name, an empty name leaves one out."""
    given = {"checkpoint": "self_forcing_dmd.pt", "vae": "vae.safetensors", "context": "context.safetensors", **changed}
    chosen = [word for name, file in given.items() if file for word in (f"--{name}", str(files / file))]
    size = ("--width", "64", "--height", "32", "--seconds", "1", "--device", "cpu", "--blocks-per-segment", "1")
    return main(["render", *chosen, *size, "--output", str(output), *arguments])


def test_a_checkpoint_a_vae_and_a_context_become_a_film(files, tmp_path, capsys):
    assert render(files, tmp_path / "out" / "film.mp4") == 0
    said = capsys.readouterr().out
    assert "1 s at 16 FPS became 1.31 s: 21 frames in 2 blocks of 3" in said
    assert "attends to at most 48 tokens" in said
    film = tmp_path / "out" / "film.mp4"
    frames = list(read_frames(film))
    assert len(frames) == 21
    assert {frame.shape for frame in frames} == {(32, 64, 3)}
    assert probe(film).fps == 16
    assert max(frame.std() for frame in frames) > 5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.mp4"]


def test_the_same_command_again_takes_a_free_name_and_gives_the_same_film(files, tmp_path):
    first, second, other = (tmp_path / name for name in ("film.mp4", "film-2.mp4", "film-3.mp4"))
    assert render(files, first) == 0
    assert render(files, first) == 0
    assert render(files, first, "--seed", "1") == 0
    assert sorted(tmp_path.iterdir()) == sorted((first, second, other))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_the_vae_can_be_told_another_device_and_one_that_is_not_there_is_refused(files, tmp_path, capsys):
    first, second = tmp_path / "film.mp4", tmp_path / "other.mp4"
    assert render(files, first) == 0
    assert render(files, second, "--decode-device", "cpu") == 0
    assert first.read_bytes() == second.read_bytes()
    assert render(files, tmp_path / "none.mp4", "--decode-device", "cuda:7") == 1
    assert "Device 'cuda:7' cannot be used" in capsys.readouterr().err


def test_the_attention_kernel_can_be_chosen_and_one_that_cannot_run_is_refused(files, tmp_path, capsys):
    first, second = tmp_path / "film.mp4", tmp_path / "auto.mp4"
    assert render(files, first) == 0
    assert render(files, second, "--attention", "auto") == 0
    assert first.read_bytes() == second.read_bytes()  # A CPU has but one.
    assert render(files, tmp_path / "none.mp4", "--attention", "cudnn") == 1
    assert "expected one of sdpa or auto" in capsys.readouterr().err


@pytest.mark.long  # A C++ compiler works for a minute.
def test_compiled_layers_render_the_film_of_plain_ones(files, tmp_path):
    films = [tmp_path / "plain.mp4", tmp_path / "compiled.mp4"]
    assert render(files, films[0], "--codec", "lossless") == 0
    assert render(files, films[1], "--codec", "lossless", "--compile") == 0
    plain, compiled = (np.stack(list(read_frames(film))).astype(int) for film in films)
    print(f"max difference of 255 levels: {np.abs(plain - compiled).max()}")
    assert np.abs(plain - compiled).max() <= 2


def test_a_prompt_goes_through_the_text_encoder(files, umt5, tmp_path):
    words = ("--prompt", "a red circle", "--text-encoder", str(umt5), "--timesteps", "1000,500")
    assert render(files, tmp_path / "film.mp4", *words, context="") == 0
    assert probe(tmp_path / "film.mp4").frames == 21


def test_choices_on_top_of_the_preset_are_followed_and_told(files, tmp_path, capsys):
    choices = ("--frames-per-block", "1", "--timesteps", "1000", "--fps", "24", "--codec", "lossless")
    policy = ("--policy", "sink_window", "--window-frames", "3", "--sink-frames", "1")
    assert render(files, tmp_path / "film.mp4", *choices, *policy) == 0
    made = probe(tmp_path / "film.mp4")
    assert (made.frames, made.fps) == (25, 24)  # 7 blocks of one latent frame
    said = capsys.readouterr().out
    assert "trained with blocks of 3 latent frames, but frames_per_block is 1" in said
    assert "attends to at most 24 tokens" in said


@pytest.mark.parametrize(("file", "blocks"), [("rolling_forcing_dmd.pt", 5), ("chunkwise/longvideo.pt", 4)])
def test_a_rolling_family_rolls(files, tmp_path, capsys, file, blocks):
    assert render(files, tmp_path / "film.mp4", checkpoint=file) == 0
    said = capsys.readouterr().out
    assert f"{blocks} blocks rolling together" in said
    assert "warning" not in said
    assert probe(tmp_path / "film.mp4").frames == 21


def test_a_rolling_family_that_is_sampled_otherwise_is_warned_about(files, tmp_path, capsys):
    assert render(files, tmp_path / "film.mp4", "--preset", "self-forcing", checkpoint="rolling_forcing_dmd.pt") == 0
    said = capsys.readouterr().out
    assert "rolling together" not in said
    assert "trained to be sampled as a rolling window of blocks, but Self-Forcing samples block by block" in said


def test_a_file_that_is_likely_bidirectional_is_rendered_with_a_warning(files, tmp_path, capsys):
    assert render(files, tmp_path / "film.mp4", "--timesteps", "1000", checkpoint="plain.safetensors") == 0
    assert "likely a bidirectional model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "changed", "messages"),
    [
        ((), {"checkpoint": "missing.pt"}, ["missing.pt"]),
        ((), {"checkpoint": "lora.pt"}, ["a LoRA of rank 4 without its base", "Load a base checkpoint"]),
        ((), {"checkpoint": "cut.pt"}, ["cut.pt"]),
        ((), {"checkpoint": "vae.safetensors"}, ["a Wan VAE", "--vae"]),
        (("--policy", "deep_forcing"), {"checkpoint": "rolling_forcing_dmd.pt"}, ["rolling rollout", "self-forcing"]),
        ((), {"vae": "missing.safetensors"}, ["missing.safetensors"]),
        ((), {"vae": "self_forcing_dmd.pt"}, ["Not a Wan VAE", "wan_2.1_vae.safetensors"]),
        ((), {"context": "vae.safetensors"}, ["no tensor called context"]),
        (("--prompt", "a red circle"), {"context": ""}, ["--prompt needs --text-encoder"]),
        (("--width", "100"), {}, ["width is 100", "96 and 112"]),
        (("--height", "0"), {}, ["height is 0", "16 to 8192"]),
        (("--seconds", "0"), {}, ["seconds is 0"]),
        (("--fps", "nan"), {}, ["fps is nan"]),
        (("--device", "warp"), {}, ["Device 'warp' cannot be used", "--device cpu"]),
        (("--device", "meta"), {}, ["Device 'meta' cannot be used"]),
        (("--quality", "99"), {}, ["quality is 99", "0 to 51"]),
        (("--policy", "window", "--window-frames", "2"), {}, ["window_frames is 2", "at least 3"]),
        (("--policy", "full", "--window-frames", "21"), {}, ["no knob window_frames"]),
        (("--frames-per-block", "0"), {}, ["frames_per_block"]),
        (("--timesteps", "250,1000"), {}, ["falling numbers"]),
        (("--shift", "nan"), {}, ["shift"]),
        (("--blocks-per-segment", "0"), {}, ["blocks_per_segment is 0"]),
    ],
    ids=str,
)
def test_bad_input_is_answered_with_a_reason_and_writes_nothing(files, tmp_path, capsys, arguments, changed, messages):
    assert render(files, tmp_path / "film.mp4", *arguments, **changed) == 1
    said = capsys.readouterr().err
    print(said)
    assert said.startswith("error: ")
    for message in messages:
        assert message in said
    assert list(tmp_path.iterdir()) == []


def test_a_lora_is_added_and_one_that_fits_nothing_is_named_before_anything_else(files, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    halves = {"A": torch.zeros(4, 64), "B": torch.zeros(64, 4)}
    save_file({f"blocks.0.ffn.0.lora_{half}.weight": tensor for half, tensor in halves.items()}, other)
    for lora in (files / "lora.pt", other):
        convert = ["convert-lora", str(lora), str(tmp_path / "x.safetensors")]
        assert main([*convert, "--checkpoint", str(files / "self_forcing_dmd.pt")]) == (lora == other)
    assert "matches no layer of this checkpoint" in capsys.readouterr().err
    assert render(files, tmp_path / "no.mp4", "--lora", str(other), vae="no vae is looked for") == 1
    assert "other.safetensors matches no layer of this checkpoint" in capsys.readouterr().err
    assert render(files, tmp_path / "plain.mp4") == 0
    assert render(files, tmp_path / "nothing.mp4", "--lora", f"{files / 'lora.pt'}@0") == 0
    assert render(files, tmp_path / "styled.mp4", "--lora", str(files / "lora.pt")) == 0
    plain, nothing, styled = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("plain", "nothing", "styled"))
    assert plain == nothing
    assert plain != styled
    assert not (tmp_path / "no.mp4").exists()


def test_an_output_that_cannot_be_written_is_said_before_sampling(files, tmp_path, capsys):
    for output, message in (
        (files / "a_file" / "film.mp4", "cannot be created"),
        (tmp_path / "film.avi", "ends in .mp4"),
        (Path(), "expected a file name"),
    ):
        assert render(files, output) == 1
        captured = capsys.readouterr()
        print(captured.err)
        assert message in captured.err
        assert "s/block" not in captured.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", ["abc", "1000,", "1000 500"])
def test_steps_that_are_no_numbers_are_a_usage_error(files, tmp_path, capsys, steps):
    with pytest.raises(SystemExit) as left:
        render(files, tmp_path / "film.mp4", "--timesteps", steps)
    assert left.value.code == 2
    assert f"expected numbers separated by commas, got '{steps}'" in capsys.readouterr().err


def test_the_model_computes_in_its_dtype_and_embeds_patches_in_float32(files):
    model = build_model(read_checkpoint(files / "self_forcing_dmd.pt"), torch.device("cpu"), torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.net.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "patch_embedding.weight",
        "patch_embedding.bias",
    }
    assert {parameter.device.type for parameter in model.net.parameters()} == {"cpu"}
    file = wan_state_dict()
    assert all(
        torch.equal(dict(model.net.named_parameters())[name], tensor.to(dtypes[name])) for name, tensor in file.items()
    )
    patches = file["patch_embedding.weight"]
    assert not torch.equal(patches, patches.bfloat16().float()), "the file's values must be finer than bfloat16"


def test_the_packforcing_memory_renders_with_and_without_a_trained_compressor(files, tmp_path, capsys):
    memory = ("--policy", "packforcing", "--sink-frames", "3", "--recent-frames", "3", "--top-k-blocks", "2")
    weights = tmp_path / "compressor.safetensors"
    branch = build_high_res(SMALL.dim)
    branch.layers[-1].weight.data.normal_(std=0.1)
    save_compressor(weights, branch, CompressorInfo("small", 3, "packforcing"))
    assert render(files, tmp_path / "zero.mp4", "--seconds", "3", *memory) == 0
    assert render(files, tmp_path / "trained.mp4", "--seconds", "3", *memory, "--compressor", str(weights)) == 0
    zero, trained = (np.stack(list(read_frames(tmp_path / f"{name}.mp4"))) for name in ("zero", "trained"))
    difference = np.abs(zero.astype(int) - trained.astype(int)).mean(axis=(1, 2, 3))
    print(f"first changed frame {int(np.argmax(difference > 0))}, mean difference at the end {difference[-1]:.2f}")
    assert int(np.argmax(difference > 0)) >= 4 * 9 - 3, "sink, recent and current block see no compressed one"
    assert difference[-1] > 0


def test_a_compressor_for_a_policy_that_has_no_use_for_it_is_refused(files, tmp_path, capsys):
    assert render(files, tmp_path / "film.mp4", "--policy", "window", "--compressor", "some.safetensors") == 1
    assert "--policy packforcing" in capsys.readouterr().err
