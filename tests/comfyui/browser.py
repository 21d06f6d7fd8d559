"""Drives ComfyUI's real front end in a real headless Chromium.

with open_browser() as browser, open_front_end(browser, server) as front_end:
    front_end.load(workflow)                 a workflow in UI format
    assert front_end.missing_nodes() == []
    entry = front_end.run()                  presses Run, waits, returns the history entry
    assert front_end.problems == []
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.comfyui.client import TIMEOUT_S
from tests.comfyui.server import ComfyServer

VARIABLE = "PACKFORCING_CHROMIUM"
CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The page may ask other hosts about models and nodes. Here it finds none, so that a run is the same with and
    # without a network. Not by Playwright's routes: with them nothing is cached, and every page would load anew.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PAGE_TIMEOUT_S = 300
# What front end 1.47.12 says on every start, without any pack.
STOCK_COMPLAINTS = ("ComfyApp graph accessed before initialization",)
STOCK_MISSING_FILES = ("/user.css",)
# The page may be asking for more of it in the moment in which the finished video takes its place.
GONE_WHEN_FINISHED = ".growing.mp4"


class BrowserMissingError(RuntimeError):
    """No Chromium can be started here; the message says what would help."""


def chromium_path() -> str | None:
    """The installed browser, or None for the one that Playwright may have downloaded."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    return next((path for path in map(shutil.which, CANDIDATES) if path), None)


def _launch(playwright: Playwright) -> Browser:
    path = chromium_path()
    try:
        return playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=1000 * PAGE_TIMEOUT_S)
    except PlaywrightError as error:
        raise BrowserMissingError(
            f"cannot start {path or 'a Chromium of Playwright'}: install one (apt-get install chromium, or "
            f"`python -m playwright install chromium`) or name it in {VARIABLE}.\n{error}"
        ) from error


@contextmanager
def open_browser() -> Iterator[BrowserContext]:
    """A fresh browser profile, in which what one page has loaded is there for the next. Raises BrowserMissingError."""
    with sync_playwright() as playwright:
        browser = _launch(playwright)
        try:
            context = browser.new_context(bypass_csp=True)
            context.set_default_timeout(1000 * PAGE_TIMEOUT_S)
            yield context
        finally:
            browser.close()


@contextmanager
def open_front_end(
    context: BrowserContext, server: ComfyServer, width: int = 1600, height: int = 900
) -> Iterator[FrontEnd]:
    """The front end of a running server, to which this browser comes for the first time."""
    page = context.new_page()
    try:
        page.set_viewport_size({"width": width, "height": height})
        front_end = FrontEnd(server, page)
        front_end.forget()
        front_end.open()
        yield front_end
    finally:
        page.close()


def until(front_end: FrontEnd, holds: Callable[[], bool], timeout: float = PAGE_TIMEOUT_S) -> None:
    """Lets the page go on until `holds()`, and a moment at least; raises TimeoutError when it never does."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        front_end.page.wait_for_timeout(100)
        if holds():
            return
    raise TimeoutError(f"not so within {timeout} s")


class FrontEnd:
    """One page with the graph editor. `problems` collects console errors and uncaught exceptions as they come."""

    def __init__(self, server: ComfyServer, page: Page) -> None:
        self.server = server
        self.page = page
        self.problems: list[str] = []
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))

    def _note_console(self, message: ConsoleMessage) -> None:
        source = message.location["url"]
        if message.type != "error" or message.text.startswith(STOCK_COMPLAINTS):
            return
        failed_to_load = message.text.startswith("Failed to load resource")
        ours = source.startswith(self.server.url) and not source.endswith(STOCK_MISSING_FILES)
        ours = ours and GONE_WHEN_FINISHED not in source
        if not failed_to_load or ours:
            self.problems.append(f"console: {message.text} ({source})")

    def forget(self) -> None:
        """Lets go of all that pages of this server have left in the browser, but for the files they have loaded."""
        session = self.page.context.new_cdp_session(self.page)
        kinds = "cookies,local_storage,indexeddb,service_workers"
        session.send("Storage.clearDataForOrigin", {"origin": self.server.url, "storageTypes": kinds})
        session.detach()

    def open(self, query: str = "") -> None:
        """Loads the page and waits until the editor can take a graph."""
        self.page.goto(f"{self.server.url}/{query}")
        self.page.wait_for_function("window.app?.vueAppReady && window.app.rootGraphInternal")
        self.page.wait_for_function("window.app.rootGraph.nodes.length > 0")

    def open_template(self, pack: str, name: str) -> None:
        """Opens a template that a pack ships, as a click on it in the template browser does."""
        with self.page.expect_response(f"**/workflow_templates/{quote(pack)}/{quote(name)}.json") as answer:
            self.open(f"?template={quote(name)}&source={quote(pack)}")
        self._show_template(name, answer.value.json())

    def pick_template(self, pack: str, name: str) -> None:
        """Opens a template as a user does: Templates in the side bar, a search for the pack, the picture."""
        self.page.get_by_test_id("side-toolbar").get_by_text("Templates", exact=True).click()
        browser = self.page.get_by_role("dialog")
        browser.get_by_placeholder("Search").fill(name.partition("_")[0])
        with self.page.expect_response(f"**/workflow_templates/{quote(pack)}/{quote(name)}.json") as answer:
            browser.get_by_test_id(f"template-workflow-{name}").click()
        browser.wait_for(state="hidden")
        self._show_template(name, answer.value.json())

    def _show_template(self, name: str, graph: dict[str, Any]) -> None:
        """Waits until a template that has arrived is the graph on the page, in place of the one that was there."""
        self.page.wait_for_function(
            """([name, ids]) => window.app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)
                && String(window.app.rootGraph.nodes.map(node => node.id).sort()) === String(ids.sort())""",
            arg=[name, [node["id"] for node in graph["nodes"]]],
        )
        self.show_all()

    def load(self, workflow: dict[str, Any]) -> None:
        """Loads a workflow in UI format and lets the whole graph be seen."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.show_all()

    def show_all(self) -> None:
        """Lets the whole graph be seen."""
        self.page.wait_for_timeout(500)
        self.page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(500)

    def node_types(self) -> list[str]:
        return self.page.evaluate("window.app.rootGraph.nodes.map(node => node.type)")

    def missing_nodes(self) -> list[str]:
        """The types in the graph that no pack has registered: the editor frames them in red."""
        return self.page.evaluate(
            "window.app.rootGraph.nodes.map(node => node.type)"
            ".filter(type => !(type in window.LiteGraph.registered_node_types))"
        )

    def wait_until_idle(self) -> None:
        """Returns when the page itself says that nothing runs any more."""
        self.page.get_by_test_id("queue-overlay-toggle").get_by_text("0 active").wait_for()

    def run(self, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Presses Run and returns the history entry of what was queued, once it has ended and is shown."""
        with self.page.expect_response("**/api/prompt") as answer:
            self.page.get_by_test_id("queue-button").click()
        body = answer.value.json()
        if "prompt_id" not in body:
            raise RuntimeError(f"the server refused the front end's prompt: {body}")
        entry = self.server.client.wait(body["prompt_id"], timeout)
        self.page.wait_for_timeout(1000)  # the result reaches the page by another way than the history reaches us
        return entry

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=path)
