"""What the registry serves, as its user gets it: unpacked into a fresh ComfyUI, where every demo template runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from packforcing_core.video import probe
from tests.archive import is_checkout, unpack
from tests.comfyui.draw_workflows import DEMO, api_names, place_files
from tests.comfyui.install import comfyui_folder
from tests.comfyui.server import ComfyServer
from tests.comfyui.test_render import film_of

pytestmark = [pytest.mark.long, pytest.mark.skipif(not is_checkout(), reason="not a git checkout")]

NAME = "comfyui-packforcing"
OF_A_USER = {"custom_nodes", "input", "models", "output", "temp", "user"}


class FreshComfyUI(ComfyServer):
    """A copy of ComfyUI whose only custom node is the archive; nothing of this checkout is in it."""

    @property
    def pack(self) -> Path:
        return self.base / "custom_nodes" / NAME

    def prepare(self) -> None:
        source = comfyui_folder()

        def left_out(folder: str, names: list[str]) -> set[str]:
            return OF_A_USER.intersection(names) if Path(folder) == source else {"__pycache__"}

        shutil.copytree(source, self.base, dirs_exist_ok=True, ignore=left_out)
        for folder in (self.pack.parent, self.output, self.base / "input", self.base / "user"):
            folder.mkdir(parents=True, exist_ok=True)
        unpack(self.pack)

    def main(self) -> Path:
        return self.base / "main.py"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshComfyUI]:
    base = tmp_path_factory.mktemp("fresh") / "ComfyUI"
    with FreshComfyUI(base) as server:
        yield server
    shutil.rmtree(base, ignore_errors=True)


def test_all_nodes_come_from_the_archive_and_no_laboratory_is_in_it(fresh: FreshComfyUI):
    everything = fresh.client.object_info()
    ours = {name: info["python_module"] for name, info in everything.items() if name.startswith("PackForcing")}
    print(f"{len(ours)} nodes of {sorted(set(ours.values()))}")
    assert len(ours) == 10
    assert set(ours.values()) == {f"custom_nodes.{NAME}"}
    assert [path for path in fresh.pack.rglob("*") if "laboratory" in path.name or path.name == "tests"] == []
    assert "laboratory" not in fresh.log_text()
    assert f"Cannot import {fresh.pack}" not in fresh.log_text()


def test_every_template_is_offered(fresh: FreshComfyUI):
    offered = fresh.client.get("/workflow_templates")[NAME]
    assert sorted(offered) == api_names()


@pytest.mark.parametrize("name", [name for name in api_names() if name.startswith(DEMO)])
def test_a_demo_template_runs_from_the_archive(fresh: FreshComfyUI, name: str):
    """The API form that the archive holds, shortened to two blocks."""
    workflow = json.loads((fresh.pack / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    place_files(fresh, workflow)
    for node in workflow.values():
        if node["class_type"] == "PackForcingSampler":
            node["inputs"]["seconds"] = 2.0
    entry = fresh.client.run(workflow)
    films = [node for node, shown in entry["outputs"].items() if "images" in shown]
    assert films
    for number in films:
        info = probe(film_of(fresh, entry, number))
        print(name, info)
        assert (info.width, info.height) in {(128, 64), (384, 96)}
        assert info.frames in {29, 32}
