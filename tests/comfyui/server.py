"""Starts a real ComfyUI on the CPU, with this pack among its custom nodes and all its folders in one place.

with ComfyServer(folder) as server:
    server.models("diffusion_models") / "tiny.safetensors"     where a test puts a checkpoint
    entry = server.client.run(prompt)
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

from tests.comfyui.client import ComfyClient
from tests.comfyui.front_end_package import front_end_arguments, front_end_version
from tests.comfyui.install import PACK, comfyui_folder

TEST_NODES = Path(__file__).with_name("test_nodes")
START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 30
# A user who has seen the welcome, so that no dialog lies over the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": front_end_version(),
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
}
# What a development checkout holds beside the pack itself.
NOT_THE_PACK = (".*", "__pycache__", "*.egg-info", "build", "dist", "renders", "venv")


class ServerDiedError(RuntimeError):
    """ComfyUI did not come up; the message holds the end of its log."""


def place_pack(custom_nodes: Path, name: str) -> Path:
    """Puts this pack into `custom_nodes` under `name`: as a link, or a copy where links are not allowed."""
    target = custom_nodes / name
    try:
        target.symlink_to(PACK, target_is_directory=True)
    except OSError:
        shutil.copytree(PACK, target, ignore=shutil.ignore_patterns(*NOT_THE_PACK))
    return target


def place_user(user: Path) -> None:
    """Makes the files of an old user, whose lack the front end reports as errors."""
    for folder in ("workflows", "subgraphs"):
        (user / folder).mkdir(parents=True, exist_ok=True)
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (user / "comfy.templates.json").write_text("[]", encoding="utf-8")
    (user / "user.css").touch()


class ComfyServer:
    """One ComfyUI process that lives as long as the `with` block.

    `base` becomes its models, input, output, temp, user and custom_nodes folders, and stays behind for a look.
    """

    def __init__(
        self, base: Path, pack_name: str | None = "ComfyUI-PackForcing", arguments: tuple[str, ...] = ()
    ) -> None:
        self.base = base
        self.pack_name = pack_name
        self.arguments = arguments
        self.log = base / "comfyui.log"
        self.port = _free_port()
        self.client = ComfyClient(f"http://127.0.0.1:{self.port}")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def url(self) -> str:
        return self.client.url

    def models(self, kind: str) -> Path:
        """The folder of one kind of model: "diffusion_models", "vae", "text_encoders", "loras" ..."""
        folder = self.base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> ComfyServer:
        self.prepare()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def prepare(self) -> None:
        """Makes the folders, and puts the pack and the test-only nodes in their place."""
        custom_nodes = self.base / "custom_nodes"
        for folder in (custom_nodes, self.output, self.base / "input"):
            folder.mkdir(parents=True, exist_ok=True)
        place_user(self.base / "user" / "default")
        shutil.copytree(TEST_NODES, custom_nodes / "packforcing_test_nodes", dirs_exist_ok=True)
        if self.pack_name is not None:
            place_pack(custom_nodes, self.pack_name)

    def main(self) -> Path:
        """ComfyUI's main.py."""
        return comfyui_folder() / "main.py"

    def start(self) -> None:
        """Starts the process and returns when it answers. Can be called again after `stop` or `kill`."""
        command = [sys.executable, str(self.main()), "--cpu", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *front_end_arguments(), *self.arguments]
        # Unbuffered, or a crash's last words are lost; one thread, as tiny tensors gain nothing from a second.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.base, env=environment
            )
        try:
            self._wait_until_ready(self.process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and process.poll() is None:
            try:
                self.client.get("/system_stats")
                return
            except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError):
                time.sleep(0.2)
        state = "did not answer" if process.poll() is None else f"ended with code {process.returncode}"
        raise ServerDiedError(f"ComfyUI {state}; its log ends with\n{self.log_text()[-4000:]}")

    def stop(self) -> None:
        """Asks the process to end, and ends it when it does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _free_port() -> int:
    """A port that stays free until the server takes it, and while it is down between a kill and the next start.

    So none of those that systems give to outgoing connections: one of ours could be given it, even to itself.
    """
    ports = list(range(20_000, 32_000))
    random.SystemRandom().shuffle(ports)
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No port from 20,000 to 32,000 is free: end what listens there.")
