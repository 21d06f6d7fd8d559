from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.comfyui.install import ComfyUIMissingError, comfyui_folder
from tests.parts import missing

# The tests' tensors are tiny: a second thread only waits for the first, for seconds where other work runs beside.
torch.set_num_threads(1)

# No deadline: a busy machine is not a bug. The same examples in every run: a failure can be had again.
settings.register_profile("packforcing", deadline=None, derandomize=True, database=None)
settings.load_profile("packforcing")


@pytest.fixture(scope="session")
def comfyui_source() -> Path:
    """The folder of a ComfyUI, for tests that run its classes in a process of their own."""
    try:
        return comfyui_folder()
    except ComfyUIMissingError as error:
        missing(str(error))
