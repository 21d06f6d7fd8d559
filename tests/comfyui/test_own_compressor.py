"""A compressor that the command made of a checkpoint: a real ComfyUI lists it, loads it, and shows another video."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.cli.main import main
from packforcing_core.laboratory.training.learner import Optimisation
from packforcing_core.laboratory.training.selfmade import plan, run
from packforcing_core.miniature.load import TEXT
from packforcing_core.video.reader import read_frames
from tests.checkpoints import SMALL_STOCK, wan_state_dict
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import HEIGHT, WIDTH, Files, decode, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_memory import preset, small_bank
from tests.comfyui.test_render import film_of

OWN = "own.safetensors"


def made_compressor(checkpoint: Path, vae: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """What `train compressor --checkpoint` leaves after two steps on two clips, with texts of random numbers."""

    def contexts(prompts):
        return [torch.randn(1, 512, SMALL_STOCK.text_dim, generator=torch.Generator().manual_seed(0)) for _ in prompts]

    patch.setattr(run, "HELD", 2)
    patch.setattr(run, "LEAST_CLIPS", 4)
    patch.setattr(run, "encoder", lambda job: contexts)
    patch.setattr(run, "WAN", run.Course(Optimisation(1e-2, warmup=0, final_rate=1.0), 2, 1, 2))
    patch.setattr(plan, "planned", lambda *_, **__: 0)
    # The file is of the best score; of two steps on random weights that may be the first one.
    patch.setattr(run.Scores, "best", property(lambda scores: scores.scores[-1]))
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    files = "--checkpoint", checkpoint, "--vae", vae, "--text-encoder", TEXT, "--prompts", folder / "prompts.txt"
    size = "--width", WIDTH, "--height", HEIGHT, "--clip-frames", 12, "--clips", 4, "--steps", 2
    assert main(["train", "compressor", *map(str, (*files, *size, "--folder", folder / "made"))]) == 0
    [made] = (folder / "made").glob("*-compressor.safetensors")
    assert made.with_suffix(".md").exists()
    return made


def loader(graph: Graph, checkpoint: str, compressor: str) -> Link:
    settings = {"weight_dtype": "default", "preset": "auto", "compressor": compressor}
    return graph.add("PackForcingModelLoader", checkpoint=checkpoint, **settings)[0]


def test_it_is_listed_at_once_changes_the_video_and_fits_no_other_base(
    comfy: ComfyServer, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models = comfy.models("diffusion_models")
    made = made_compressor(models / files.self_forcing, comfy.models("vae") / files.vae, tmp_path, monkeypatch)
    shutil.copy(made, comfy.models("packforcing_compressors") / OWN)
    films, said = [], []
    for compressor in ("none", OWN):
        graph = Graph()
        model, vae = loader(graph, files.self_forcing, compressor), graph.add("VAELoader", vae_name=files.vae)[0]
        cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
        film = decode(graph, stream(graph, model, kv_cache=cache, vae=vae, seconds=4.0), files, codec="lossless")
        with comfy.client.events() as events:
            entry = comfy.client.run(graph.prompt)
        films.append(np.stack(list(read_frames(film_of(comfy, entry, film.id)))).astype(int))
        said.append([text for node, text in events.texts if node == cache[0]][-1])
    apart = np.abs(films[0] - films[1]).mean(axis=(1, 2, 3))
    print(f"the videos differ from frame {int(np.argmax(apart > 0))} on, by {apart[-1]:.2f} of 255 at the end")
    assert apart[-1] > 0
    assert not apart[: 4 * 3 * 3 - 3].any(), "no compressed block is in view before sink and recent frames are full"
    assert ["no trained compressor" in text for text in said] == [True, False]

    other = "self_forcing_other.safetensors"
    save_file(wan_state_dict(SMALL_STOCK, seed=5), models / other)
    graph = Graph()
    decode(graph, stream(graph, loader(graph, other, OWN)), files)
    failed(comfy, graph, "PackForcingModelLoader", "the same sizes but other weights", Path(files.self_forcing).stem)
