"""Speaks to a running ComfyUI as any program would: over HTTP and its web socket."""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import websocket

Prompt = dict[str, dict[str, Any]]

TIMEOUT_S = 600
"""Seconds until something that does not come is given up: only a failure waits for it, however slow the machine."""

TOLD, FRAME = "packforcing.monitor", "packforcing.frame"
"""The events by which a node of this pack says something, and shows a picture of what it makes."""

# Kinds of binary message on the socket: the first four bytes, big-endian.
PREVIEW_IMAGE, TEXT, PREVIEW_IMAGE_WITH_METADATA = 1, 3, 4


class PromptRejectedError(RuntimeError):
    """The server refused a prompt before running it. `body` is its JSON answer, `str()` the errors."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status, self.body = status, body
        super().__init__(f"HTTP {status}\n" + "\n".join(_error_lines(body)))


class PromptFailedError(RuntimeError):
    """A prompt ended in anything but success. `entry` is its history entry."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry
        super().__init__("\n".join(_failure_lines(entry)))


def _error_lines(body: dict[str, Any]) -> Iterator[str]:
    error = body.get("error", {})
    yield f"{error.get('type')}: {error.get('message')} {error.get('details', '')}".rstrip()
    for node, report in body.get("node_errors", {}).items():
        where = f"node {node} {report['class_type']}"
        for fault in report["errors"]:
            yield f"{where}: {fault['type']}: {fault['message']}: {fault['details']}"


def _failure_lines(entry: dict[str, Any]) -> Iterator[str]:
    yield f"status {entry['status']['status_str']}"
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            where = f"node {data['node_id']} {data['node_type']}"
            yield f"{where}: {data['exception_type']}: {data['exception_message']}"
            yield from data["traceback"]
        elif kind == "execution_interrupted":
            yield f"interrupted in node {data['node_id']} {data['node_type']}"


@dataclass
class Preview:
    """One preview picture: JPEG or PNG bytes, with `metadata` saying of which node and prompt."""

    image: bytes
    metadata: dict[str, Any]


@dataclass
class Events:
    """What the socket said since it was opened."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)  # (node id, text)
    previews: int = 0
    last_preview: Preview | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The data of every message of one kind: "executed", "progress", "execution_error" ..."""
        return [message["data"] for message in list(self.messages) if message["type"] == kind]

    def wait_for(self, holds: Callable[[Events], bool], timeout: float = TIMEOUT_S) -> None:
        """Returns as soon as `holds(self)`, looked at after each message; raises TimeoutError otherwise."""
        with self._changed:
            if not self._changed.wait_for(lambda: holds(self), timeout):
                kinds = [message["type"] for message in self.messages][-20:]
                raise TimeoutError(f"not seen in {timeout} s; {self.previews} previews, last messages {kinds}")

    def ended(self, prompt_id: str) -> bool:
        """Whether the last message about a prompt is here: it comes after everything else that the prompt said."""
        return any(data["node"] is None and data.get("prompt_id") == prompt_id for data in self.of_type("executing"))

    def record(self, payload: str | bytes) -> None:
        with self._changed:
            if isinstance(payload, str):
                message = json.loads(payload)
                self.messages.append(message)
                if message["type"] == TOLD:
                    self.texts.append((message["data"]["node"], message["data"]["text"]))
                elif message["type"] == FRAME:
                    image = base64.b64decode(message["data"]["image"].partition(",")[2])
                    self.previews, self.last_preview = self.previews + 1, Preview(image, message["data"])
            else:
                self._record_binary(payload)
            self._changed.notify_all()

    def _record_binary(self, payload: bytes) -> None:
        kind, length = struct.unpack(">II", payload[:8])
        head, tail = payload[8 : 8 + length], payload[8 + length :]
        if kind == TEXT:
            self.texts.append((head.decode(), tail.decode()))
        elif kind == PREVIEW_IMAGE_WITH_METADATA:
            self.previews, self.last_preview = self.previews + 1, Preview(tail, json.loads(head))
        elif kind == PREVIEW_IMAGE:  # here the second word is a picture format, and the rest the picture
            self.previews, self.last_preview = self.previews + 1, Preview(payload[8:], {})


class ComfyClient:
    """A client with an id of its own; what it queues is reported to its `events()`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex
        self._listening: Events | None = None
        self._heard: set[str] = set()  # prompts that were queued while `_listening`

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self._open(path, query))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._open(path, {}, json.dumps(body).encode())
        return json.loads(answer) if answer else None

    def _open(self, path: str, query: dict[str, str], body: bytes | None = None) -> bytes:
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"Content-Type": "application/json"} if body is not None else {}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S) as answer:
            return answer.read()

    def queue(self, prompt: Prompt, own_id: bool = True) -> str:
        """Queues an API-format prompt and returns its id; without `own_id` as an anonymous client.

        Raises PromptRejectedError with the server's reasons.
        """
        body: dict[str, Any] = {"prompt": prompt}
        if own_id:
            body["client_id"] = self.client_id
        try:
            prompt_id = self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                answer = json.loads(text)
            except json.JSONDecodeError:
                answer = {"error": {"type": "not JSON", "message": text}}
            raise PromptRejectedError(error.code, answer) from error
        if own_id and self._listening is not None:
            self._heard.add(prompt_id)
        return prompt_id

    def wait(self, prompt_id: str, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """The history entry of a prompt once it has ended, well or badly.

        The history and the socket go different ways, and either may be first: of a prompt that was queued within
        `events()` all events are there, too, when this returns.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                if self._listening is not None and prompt_id in self._heard:
                    self._listening.wait_for(lambda seen: seen.ended(prompt_id), timeout)
                return history[prompt_id]
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout} s")

    def run(self, prompt: Prompt, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Queues, waits, and returns the history entry of a success; raises PromptFailedError otherwise."""
        entry = self.wait(self.queue(prompt), timeout)
        if entry["status"]["status_str"] != "success":
            raise PromptFailedError(entry)
        return entry

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupts the running prompt; with an id only if it is that one."""
        self.post("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The description of every registered node, or of one."""
        return self.get("/object_info" if node is None else f"/object_info/{node}")

    def view(self, file: dict[str, str]) -> bytes:
        """The bytes of a file as an output names it: {"filename", "subfolder", "type"}."""
        return self._open("/view", {key: file[key] for key in ("filename", "subfolder", "type")})

    def free(self) -> None:
        """Asks the server to unload models and to forget cached outputs, before its next prompt."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    @contextmanager
    def events(self) -> Iterator[Events]:
        """Records this client's socket while the block runs, previews with metadata asked for."""
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        socket = websocket.create_connection(address, timeout=TIMEOUT_S)
        socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        events = Events()
        reader = threading.Thread(target=_record_all, args=(socket, events), daemon=True)
        reader.start()
        try:
            events.wait_for(lambda seen: bool(seen.of_type("feature_flags")))
            self._listening = events
            yield events
        finally:
            self._listening = None
            self._heard.clear()
            socket.close()
            reader.join(5)


def _record_all(socket: websocket.WebSocket, events: Events) -> None:
    with suppress(websocket.WebSocketException, OSError):
        while True:
            try:
                payload = socket.recv()
            except websocket.WebSocketTimeoutException:  # silence is not an end
                continue
            if not payload:
                return
            events.record(payload)
