"""The pack as users get it, in a ComfyUI of its own: cloned with git, and from the archive that the registry serves."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
import zipfile
from pathlib import Path

import pytest

from packforcing_core.video import probe
from tests.comfyui.graphs import Graph
from tests.comfyui.install import PACK, ComfyUIMissingError
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import decode, our_loader, stream, write_files
from tests.comfyui.test_render import film_of
from tests.parts import missing


def git(*arguments: str) -> list[str]:
    if shutil.which("git") is None or not (PACK / ".git").exists():
        pytest.skip("not a git checkout")
    # A checkout that another user owns, as in a container, is one all the same.
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *arguments], cwd=PACK, capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout.splitlines()


def archive_names() -> list[str]:
    """What `comfy node pack` takes: tracked files but those that .comfyignore names."""
    left_out = set(git("ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"))
    return sorted(name for name in git("ls-files") if name not in left_out and (PACK / name).exists())


def test_the_archive_holds_what_runs_and_nothing_else():
    names = archive_names()
    size = sum((PACK / name).stat().st_size for name in names)
    print(f"{len(names)} files, {size / 1e6:.2f} MB")
    assert {name.split("/")[0] for name in names} == {
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "__init__.py",
        "locales",
        "nodes",
        "packforcing_core",
        "pyproject.toml",
        "requirements.txt",
        "workflows",
    }
    needed = {"nodes/web/kv_cache_panel.js", "locales/zh/nodeDefs.json", "workflows/text_to_long_video.json"}
    needed |= {f"packforcing_core/miniature/weights/{part}.safetensors" for part in ("wan", "vae", "text")}
    assert needed <= set(names)
    assert size < 30e6


def clone(target: Path) -> None:
    git("clone", "--quiet", str(PACK), str(target))


def unpack_archive(target: Path) -> None:
    archive = target.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for name in archive_names():
            packed.write(PACK / name, name)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(target)
    archive.unlink()


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        pytest.param(clone, "ComfyUI-PackForcing", marks=pytest.mark.long),
        (unpack_archive, "comfyui-packforcing"),
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
