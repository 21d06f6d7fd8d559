"""A preview that moves: the newest block's frames, one after the other, while the next block is made.

The front end shows a preview as a still and replaces it by the next, in its canvas and in its Vue nodes alike; so the
server sends the frames at the pace at which they should be seen. Each frame is sent once. ComfyUI's own event loop
paces them: no thread of ours, and no check for interruption, which belongs to the thread that samples.
"""

from __future__ import annotations

import asyncio
import threading
import time

import comfy.utils
import numpy as np
from comfy_api.v0_0_2 import ComfyAPI
from PIL import Image
from server import PromptServer

PREVIEW_SIZE = 512
SLOWEST_S = 0.25
"""A frame is seen for this long at most: slower than real time is motion still, slower than this is not."""


def pace(frames: int, fps: float, made_in: float) -> tuple[list[int], float]:
    """Which of a block's frames to show and for how many seconds each, so that they last until the next block.

    `made_in` is how long the block took. Never faster than `fps`: a block that took less than its length loses frames.
    """
    count = min(frames, max(1, round(made_in * fps)))
    indices = [round(i * (frames - 1) / max(1, count - 1)) for i in range(count)] if count > 1 else [frames - 1]
    return indices, min(max(made_in / count, 1 / fps), SLOWEST_S)


class MovingPreview:
    """Plays blocks of frames uint8 [T, H, W, 3] on a node until `close`."""

    def __init__(self, bar: comfy.utils.ProgressBar, node_id: str, fps: float):
        self._bar, self._node_id, self._fps = bar, node_id, fps
        self._last = time.monotonic()
        self._turn = 0
        self._lock = threading.Lock()

    def play(self, frames: np.ndarray) -> None:
        """Takes the place of the block that is playing."""
        now = time.monotonic()
        indices, interval = pace(len(frames), self._fps, now - self._last)
        self._last = now
        with self._lock:
            self._turn += 1
        pictures = [Image.fromarray(frames[index]) for index in indices]
        # The first goes the way that clients know which cannot tell whose preview it is.
        self._bar.update_absolute(self._bar.current, preview=("JPEG", pictures[0], PREVIEW_SIZE))
        playing = self._play(pictures[1:], interval, self._turn)
        asyncio.run_coroutine_threadsafe(playing, PromptServer.instance.loop)

    async def _play(self, pictures: list[Image.Image], interval: float, turn: int) -> None:
        execution = ComfyAPI().execution
        for picture in pictures:
            await asyncio.sleep(interval)
            with self._lock:  # After `close`, a late frame would mark the node as running again.
                if turn != self._turn:
                    return
                bar = self._bar
                await execution.set_progress(bar.current, bar.total, self._node_id, picture)

    def close(self) -> None:
        with self._lock:
            self._turn += 1
