"""What the pack lacks in a ComfyUI is one sentence: too old a ComfyUI, a package that is missing or too old."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def needs(monkeypatch):
    """The module alone, as `__init__` of the pack imports it first; beside a ComfyUI that is new enough."""
    spec = importlib.util.spec_from_file_location("packforcing_needs", ROOT / "nodes" / "needs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    comfyui(monkeypatch, "0.30.0")
    return module


def comfyui(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "comfyui_version", types.SimpleNamespace(__version__=version))


def installed(monkeypatch, **versions):
    """Packages by name (with _ for -), None where one is missing; the others as they are."""
    real = importlib.metadata.version

    def version(name):
        found = versions.get(name.replace("-", "_"), "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_is_here_is_enough(needs):
    assert needs.unmet() is None


@pytest.mark.parametrize("version", ["0.22.9", "0.3.75", "0.20"])
def test_a_comfyui_that_is_too_old_is_told_the_needed_version(needs, monkeypatch, version):
    comfyui(monkeypatch, version)
    said = needs.unmet()
    print(said)
    assert said.startswith("PackForcing needs ComfyUI 0.23 or newer and this is 0.")
    assert said.endswith("update ComfyUI.")


@pytest.mark.parametrize("version", ["0.23.0", "1.0", "nightly"])
def test_a_comfyui_that_is_new_enough_or_says_nothing_is_taken(needs, monkeypatch, version):
    comfyui(monkeypatch, version)
    assert needs.unmet() is None


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ({"imageio_ffmpeg": None}, ["imageio-ffmpeg"]),
        ({"imageio_ffmpeg": "0.5.1"}, ["imageio-ffmpeg"]),
        ({"rich": "12.6.0", "safetensors": None}, ["rich", "safetensors"]),
        ({"pillow": "10.0.1"}, ["pillow"]),
    ],
)
def test_packages_that_are_missing_or_too_old_are_named_with_the_remedy(needs, monkeypatch, versions, named):
    installed(monkeypatch, **versions)
    said = needs.unmet()
    print(said)
    lines = re.search("needs (.*?): install", said).group(1).split(", ")
    assert [re.match(r"[\w-]+", line).group() for line in lines] == named
    assert "-m pip install -r" in said
    assert "\n" not in said


@pytest.mark.parametrize("version", ["13", "13.0.0", "13.7.1", "99", "14.0rc1", "unknown"])
def test_versions_are_compared_number_by_number(needs, monkeypatch, version):
    installed(monkeypatch, rich=version)
    assert needs.unmet() is None
