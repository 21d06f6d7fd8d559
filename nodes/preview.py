"""A moving preview: plays the newest block's frames while the next block is sampled.

The page shows a frame until the next one arrives, so the server sends frames at playback speed, each once. They are
paced by ComfyUI's event loop, without a thread of our own. They go to the pack's own part of the node, because the
front end would show a second preview beside it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time

import comfy.utils
import numpy as np
from comfy_api import feature_flags
from PIL import Image
from server import PromptServer

from .tell import FRAME, Line

PREVIEW_SIZE = 512
SLOWEST_S = 0.25
"""The longest time a frame is shown. Up to here slow motion still looks like motion."""


def pace(frames: int, fps: float, made_in: float) -> tuple[list[int], float]:
    """Which of a block's frames to show, and for how many seconds each, so that they last until the next block.

    `made_in` is how long the block took, in seconds. Frames never play faster than `fps`: if a block was sampled faster
    than it plays, frames are dropped.
    """
    count = min(frames, max(1, round(made_in * fps)))
    indices = [round(i * (frames - 1) / max(1, count - 1)) for i in range(count)] if count > 1 else [frames - 1]
    return indices, min(max(made_in / count, 1 / fps), SLOWEST_S)


class MovingPreview:
    """Plays blocks of frames, uint8 [T, H, W, 3], on a node until `close` is called."""

    def __init__(self, bar: comfy.utils.ProgressBar, line: Line, fps: float):
        self._bar, self._line, self._fps = bar, line, fps
        self._last = time.monotonic()
        self._turn = 0
        self._lock = threading.Lock()

    def play(self, frames: np.ndarray) -> None:
        """Plays this block instead of the one that is playing."""
        now = time.monotonic()
        indices, interval = pace(len(frames), self._fps, now - self._last)
        self._last = now
        with self._lock:
            self._turn += 1
        pictures = [Image.fromarray(frames[index]) for index in indices]
        if not _is_front_end(self._line.client):
            self._bar.update_absolute(self._bar.current, preview=("JPEG", pictures[0], PREVIEW_SIZE))
        playing = self._play(pictures, interval, self._turn)
        asyncio.run_coroutine_threadsafe(playing, PromptServer.instance.loop)

    async def _play(self, pictures: list[Image.Image], interval: float, turn: int) -> None:
        for picture in pictures:
            with self._lock:
                if turn != self._turn:
                    return
                self._line.send(FRAME, image=_data_url(picture))
            await asyncio.sleep(interval)

    def close(self) -> None:
        with self._lock:
            self._turn += 1


def _is_front_end(client: str | None) -> bool:
    """Whether a client can tell which node a preview is for, as ComfyUI's own front end can."""
    sockets = PromptServer.instance.sockets_metadata
    return feature_flags.supports_feature(sockets, client, "supports_preview_metadata")


def _data_url(picture: Image.Image) -> str:
    picture.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
