from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.comfyui.install import ComfyUIMissingError, comfyui_folder
from tests.parts import missing

# The tests' tensors are tiny: a second thread only waits for the first, for seconds where other work runs beside.
# By the environment, before torch is imported: so it holds for the processes that tests start, and pytest-xdist's own
# process, which runs no test, starts without torch. Whoever sets another number gets it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What tests start on this machine is not asked for by way of a proxy.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))

COMFYUI = Path(__file__).parent / "comfyui"

# No deadline: a busy machine is not a bug. The same examples in every run: a failure can be had again.
settings.register_profile("packforcing", deadline=None, derandomize=True, database=None)
settings.load_profile("packforcing")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """All tests in comfyui/ bear its mark alone: where that is deselected, not even their imports are needed."""
    marks = config.getoption("markexpr")
    if collection_path == COMFYUI and ("not comfyui" in marks or marks.startswith("integration")):
        return True
    return None


@pytest.fixture(scope="session")
def comfyui_source() -> Path:
    """The folder of a ComfyUI, for tests that run its classes in a process of their own."""
    try:
        return comfyui_folder()
    except ComfyUIMissingError as error:
        missing(str(error))
