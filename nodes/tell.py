"""Messages from nodes to the browser page that queued the prompt. They stay on the node after the job and after a page
reload.

An event is sent to that client only: `{"serial": rising, "node": id on the page, "prompt": id of the job, "workflow":
id of the graph or null, ...}`. GET /packforcing/told?client=ID returns the last event of each kind and node, `[{"type":
kind, "data": event}, ...]`, for a page that was reloaded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aiohttp import web
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

MONITOR = "packforcing.monitor"
FRAME = "packforcing.frame"
PATH = "/packforcing/told"
MOST_CLIENTS, MOST_EVENTS = 64, 256

_last: OrderedDict[str, OrderedDict[tuple, dict[str, Any]]] = OrderedDict()
_lock = threading.Lock()
_noted: dict[tuple[str, str], list[str]] = {}  # job and node -> lines


@dataclass(frozen=True)
class Line:
    """Sends messages from one node of the running job to the page that queued it; `client` None: there is no page."""

    client: str | None
    prompt: str
    workflow: str | None
    node: str

    @classmethod
    def of(cls, node_id: str) -> Line:
        """The line of a node in the running job. Call it from the thread that runs the job."""
        context = get_executing_context()
        prompt = context.prompt_id if context is not None else ""
        shown = get_progress_state().dynprompt.get_display_node_id(node_id)
        return cls(PromptServer.instance.client_id, prompt, _workflow_of(prompt), shown)

    def send(self, kind: str, **data: Any) -> dict[str, Any]:
        """Sends an event that is shown now and not kept."""
        own = {"prompt": self.prompt, "workflow": self.workflow, "node": self.node}
        # From the clock, so that events after a server restart still have larger numbers.
        event = {"serial": time.time_ns() // 1000, **own, **data}
        if self.client is not None:
            PromptServer.instance.send_sync(kind, event, self.client)
        return event

    def tell(self, kind: str = MONITOR, **data: Any) -> None:
        """Sends an event and keeps it for a page that is reloaded."""
        event = self.send(kind, **data)
        if self.client is None:
            return
        key = (kind, self.workflow, self.node)
        with _lock:
            told = _last.setdefault(self.client, OrderedDict())
            _last.move_to_end(self.client)
            told[key] = {"type": kind, "data": event}
            told.move_to_end(key)
            _drop_oldest(told, MOST_EVENTS)
            _drop_oldest(_last, MOST_CLIENTS)


def say(node_id: str, text: str) -> None:
    """Shows `text` on the node, below its notes from this job, until the next call."""
    line = Line.of(node_id)
    line.tell(text="\n".join([*_noted_on(line), text]))


def note(node_id: str, *lines: str) -> None:
    """Adds lines to the node's notes, each once. Without lines, it clears the notes of earlier jobs."""
    line = Line.of(node_id)
    noted = _noted_on(line)
    noted += [text for text in lines if text not in noted]
    line.tell(text="\n".join(noted))


def add_route(routes: web.RouteTableDef) -> None:
    @routes.get(PATH)
    async def told(request: web.Request) -> web.Response:
        with _lock:
            events = list(_last.get(request.query.get("client", ""), {}).values())
        return web.json_response(events)


def _noted_on(line: Line) -> list[str]:
    """The notes of a node in the running job. Call it from the thread that runs jobs."""
    for key in [key for key in _noted if key[0] != line.prompt]:
        del _noted[key]
    return _noted.setdefault((line.prompt, line.node), [])


@lru_cache(maxsize=8)
def _workflow_of(prompt: str) -> str | None:
    """The id of the graph that a running job was queued from; None if the prompt did not come from a graph."""
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    for item in running:
        if item[1] == prompt:
            return ((item[3].get("extra_pnginfo") or {}).get("workflow") or {}).get("id")
    return None


def _drop_oldest(items: OrderedDict, most: int) -> None:
    while len(items) > most:
        items.popitem(last=False)
