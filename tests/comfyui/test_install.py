"""The pack as users get it, in a ComfyUI of its own: cloned with git, and from the archive that the registry serves."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import pytest

from packforcing_core.video import probe
from tests.archive import PACK, git, is_checkout, unpack
from tests.comfyui.graphs import Graph
from tests.comfyui.install import ComfyUIMissingError
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import decode, our_loader, stream, write_files
from tests.comfyui.test_render import film_of
from tests.parts import missing


def clone(target: Path) -> None:
    if not is_checkout():
        pytest.skip("not a git checkout")
    git("clone", "--quiet", str(PACK), str(target))


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        pytest.param(clone, "ComfyUI-PackForcing", marks=pytest.mark.long),
        (unpack, "comfyui-packforcing"),
    ],
)
def test_an_installed_pack_loads_explains_itself_and_renders(tmp_path: Path, place, folder: str):
    custom_nodes = tmp_path / "custom_nodes"
    custom_nodes.mkdir()
    place(custom_nodes / folder)
    try:
        with ComfyServer(tmp_path, pack_name=None) as server:
            assert "IMPORT FAILED" not in server.log_text()
            served = server.client.get("/extensions")
            print([name for name in served if folder in name])
            assert f"/extensions/{folder}/kv_cache_panel.js" in served
            assert folder in server.client.get("/workflow_templates")
            assert server.client.get("/i18n")["zh"]["nodeDefs"]["PackForcingSampler"]
            with urllib.request.urlopen(f"{server.url}/extensions/{folder}/docs/PackForcingSampler.md") as page:
                assert page.read().startswith(b"# PackForcing Sampler")
            graph, files = Graph(), write_files(server)
            film = decode(graph, stream(graph, our_loader(graph, files)), files)
            entry = server.client.run(graph.prompt)
            assert probe(film_of(server, entry, film.id)).frames == 33
    except ComfyUIMissingError as error:
        missing(str(error))
    finally:
        shutil.rmtree(tmp_path / "models", ignore_errors=True)
