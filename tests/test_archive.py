"""What the ComfyUI registry serves runs on its own: no tests, no laboratory, nothing that needs either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archive import PACK, archive_names, is_checkout, unpack

pytestmark = pytest.mark.skipif(not is_checkout(), reason="not a git checkout")

IMPORT_ALL = """
import pkgutil, sys, packforcing_core
from importlib import import_module
names = [module.name for module in pkgutil.walk_packages(packforcing_core.__path__, "packforcing_core.")]
for name in names:
    import_module(name)
print(len(names), packforcing_core.__file__)
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry") / "pack"
    unpack(folder)
    return folder


def run(pack: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(pack), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=pack, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_holds_what_runs_and_nothing_else():
    names = archive_names()
    assert {name.split("/")[0] for name in names} == {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
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
    assert [name for name in names if "laboratory" in name] == []
    needed = {
        "nodes/web/kv_cache_panel.js",
        "locales/zh/nodeDefs.json",
        "workflows/packforcing_wan_text_to_long_video.json",
    }
    needed |= {f"packforcing_core/miniature/weights/{part}.safetensors" for part in ("wan", "vae", "text")}
    assert needed <= set(names)


def test_it_is_small():
    size = sum((PACK / name).stat().st_size for name in archive_names())
    print(f"{size / 1e6:.2f} MB")
    assert size < 31e6


def test_every_module_imports(pack):
    said = run(pack, "-c", IMPORT_ALL)
    print(said)
    assert str(pack) in said
    assert int(said.split()[0]) > 50


def test_its_command_line_offers_what_it_has(pack):
    said = run(pack, "-m", "packforcing_core.cli.main", "--help")
    assert all(command in said for command in ("render", "plan", "inspect", "demo"))
    assert "bench" not in said
