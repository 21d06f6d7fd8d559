"""ComfyUI killed in the middle of renders, and the same API JSON queued again; the sampler's modes."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from glob import glob  # Unlike Path.glob it passes over folders that vanish meanwhile.
from pathlib import Path

import numpy as np
import pytest

from packforcing_core.folder.files import UNFINISHED
from packforcing_core.video.reader import read_frames
from tests.comfyui.client import TIMEOUT_S, PromptFailedError
from tests.comfyui.graphs import Graph, Node
from tests.comfyui.install import ComfyUIMissingError
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream, with_lora, write_files
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_memory import preset, small_bank
from tests.comfyui.test_render import film_of
from tests.parts import missing

SECONDS = 9.0


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI of its own, to be killed."""
    base = tmp_path_factory.mktemp("mortal")
    try:
        with ComfyServer(base) as server:
            write_files(server)
            yield server
    except ComfyUIMissingError as error:
        missing(str(error))
    finally:
        shutil.rmtree(base / "models", ignore_errors=True)


def long_graph(files: Files, **settings) -> tuple[Graph, Node]:
    """A render with a bank and a LoRA, so that everything there is has to come back."""
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    cache = preset(graph, "PackForcing", **small_bank("PackForcing"))
    model = with_lora(graph, our_loader(graph, files), files)
    inputs = {"seconds": SECONDS, "timesteps": "1000, 500", **settings}
    film = decode(graph, stream(graph, model, kv_cache=cache, vae=vae, **inputs), files, blocks_per_segment=2)
    graph.prompt[film.id]["inputs"]["vae"] = vae
    return graph, film


def frames(comfy: ComfyServer, entry: dict, film: Node) -> np.ndarray:
    return np.stack(list(read_frames(film_of(comfy, entry, film.id))))


def told(entry: dict, film: Node) -> str:
    (text,) = entry["outputs"][film.id]["text"]
    return text


def sampled_blocks(comfy: ComfyServer) -> int:
    return len(glob(f"{comfy.output}/packforcing/auto-*/blocks/*.safetensors"))


def kill_soon(comfy: ComfyServer, graph: Graph, chance: random.Random, number: int) -> str:
    """Queues the prompt and kills the server at a random moment of it; every third while a block is being written."""
    before = sampled_blocks(comfy)
    prompt_id = comfy.client.queue(graph.prompt)
    end = time.monotonic() + TIMEOUT_S
    if number % 3 == 2:
        moment = "while writing a block"
        while time.monotonic() < end and not glob(f"{comfy.output}/packforcing/*/blocks/{UNFINISHED}/*"):
            if prompt_id in comfy.client.get(f"/history/{prompt_id}"):
                moment = "at the end"
                break
    else:
        more, pause = chance.randint(0, 4), chance.uniform(0, 0.3)
        moment = f"{more} blocks and {1000 * pause:.0f} ms later"
        while time.monotonic() < end and sampled_blocks(comfy) < min(12, before + more):
            time.sleep(0.005)
        time.sleep(pause)
    comfy.kill()
    return f"killed {moment}: {sampled_blocks(comfy)} blocks on disk"


def kill_and_requeue(comfy: ComfyServer, kills: int, seed: int) -> None:
    files = Files(
        "self_forcing_dmd.pt", "causal_forcing-framewise.safetensors", "small-lora.safetensors", "small-vae.safetensors"
    )
    graph, film = long_graph(files, seed=seed)
    chance = random.Random(seed)
    for number in range(kills):
        print(kill_soon(comfy, graph, chance, number), flush=True)
        comfy.start()
    on_disk = sampled_blocks(comfy)
    entry = comfy.client.run(graph.prompt)
    print(told(entry, film))
    if on_disk:
        assert f"{on_disk} blocks reused" in told(entry, film)
    survived = frames(comfy, entry, film)
    unbroken_graph, film = long_graph(files, seed=seed, render_name=f"unbroken-{seed}", render_mode="new")
    unbroken = frames(comfy, comfy.client.run(unbroken_graph.prompt), film)
    worst = np.abs(survived.astype(int) - unbroken.astype(int)).max()
    print(f"{len(survived)} frames, largest difference {worst} of 255")
    assert len(survived) == 141
    assert worst == 0
    shutil.rmtree(comfy.output / "packforcing")


def test_three_kills_of_comfyui_and_the_same_json_again_give_the_identical_film(mortal: ComfyServer):
    kill_and_requeue(mortal, 3, seed=31)


@pytest.mark.long
def test_twenty_kills_of_comfyui_and_the_same_json_again_give_identical_films(mortal: ComfyServer):
    for film in range(5):
        kill_and_requeue(mortal, 4, seed=41 + film)


def test_the_modes_extend_and_retake_a_named_render(comfy: ComfyServer, files: Files):
    made = {}
    for mode, settings in {
        "resume": {"seconds": 2.0},
        "extend": {"seconds": 4.0},
        "retake": {"seconds": 4.0, "retake_from": 3.0, "seed": 52},
    }.items():
        graph, film = long_graph(files, **{"seed": 51, "render_name": "modes", "render_mode": mode, **settings})
        entry = comfy.client.run(graph.prompt)
        print(told(entry, film))
        made[mode] = frames(comfy, entry, film), told(entry, film)
    assert [len(film) for film, _ in made.values()] == [33, 69, 69]
    assert "3 blocks reused, 3 of 6 sampled" in made["extend"][1]
    assert "4 blocks reused, 2 of 6 sampled" in made["retake"][1]
    extended, retaken = made["extend"][0].astype(int), made["retake"][0].astype(int)
    assert np.abs(extended[:21] - made["resume"][0][:21].astype(int)).max() == 0
    changed = np.abs(extended - retaken).max(axis=(1, 2, 3))
    print(f"first changed frame {int(np.argmax(changed > 0))}")
    assert int(np.argmax(changed > 0)) == 45
    graph, film = long_graph(files, seconds=4.0, seed=51, render_name="modes")
    failed(comfy, graph, "PackForcingSampler", "other settings", "seed: the render has 52, now 51")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"render_mode": "extend"}, ("enter its name",)),
        ({"render_mode": "retake", "render_name": "nothing here"}, ("no render 'nothing here' to retake",)),
    ],
)
def test_a_mode_that_cannot_be_is_refused_with_a_reason(comfy: ComfyServer, files: Files, settings: dict, words):
    graph, _ = long_graph(files, **settings)
    failed(comfy, graph, "PackForcingSampler", *words)


@pytest.mark.parametrize("name", ["../outside", "a/b", "a\\b", "C:", "con", "x" * 200, ".hidden", "a\0b"])
def test_a_render_name_that_leads_elsewhere_is_refused_before_the_run(comfy: ComfyServer, files: Files, name: str):
    graph, _ = long_graph(files, render_name=name)
    before = sorted(path for path in comfy.base.parent.iterdir())
    with pytest.raises((PromptFailedError, Exception), match="Got the render name"):
        comfy.client.run(graph.prompt)
    assert sorted(path for path in Path(comfy.base).parent.iterdir()) == before


def test_a_finished_render_without_a_name_keeps_its_latents_only(comfy: ComfyServer, files: Files):
    graph, _ = long_graph(files, seconds=3.0, seed=61)
    before = set((comfy.output / "packforcing").glob("auto-*"))
    comfy.client.run(graph.prompt)
    (folder,) = set((comfy.output / "packforcing").glob("auto-*")) - before
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    print(left)
    assert [name for name in left if name.endswith(".mp4")] == []
    assert len([name for name in left if name.startswith("blocks/")]) == 4
