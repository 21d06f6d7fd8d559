from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from tests.comfyui.browser import BrowserMissingError, FrontEnd, open_browser, open_front_end
from tests.comfyui.install import ComfyUIMissingError
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, write_files
from tests.parts import missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("comfyui")


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One real ComfyUI for all tests of this folder; tests bring their own file names."""
    base = tmp_path_factory.mktemp("comfyui")
    try:
        with ComfyServer(base) as server:
            yield server
    except ComfyUIMissingError as error:
        missing(str(error))
    finally:
        # pytest keeps the folder for a look at the log; checkpoints are not worth keeping.
        shutil.rmtree(base / "models", ignore_errors=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[BrowserContext]:
    try:
        with open_browser() as context:
            yield context
    except BrowserMissingError as error:  # In CI, too: what a browser shows is not all that is tested.
        pytest.skip(str(error))


@pytest.fixture
def front_end(browser: BrowserContext, comfy: ComfyServer) -> Iterator[FrontEnd]:
    """The server's front end in a page of its own."""
    with open_front_end(browser, comfy) as page:
        yield page


@pytest.fixture(scope="session")
def files(comfy: ComfyServer) -> Files:
    """The small checkpoints of `small_graphs`, written once."""
    return write_files(comfy)
