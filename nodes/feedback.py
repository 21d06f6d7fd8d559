"""What the user sees while a node works: the progress bar, the newest frames, and a line of text."""

from __future__ import annotations

import time

import comfy.utils
from server import PromptServer

from ..packforcing_core.filmed import Note, RenderEvent
from ..packforcing_core.geometry import size_text
from ..packforcing_core.recorded import Replayed
from ..packforcing_core.sampler.rollout import BlockDone, StepDone
from .preview import MovingPreview
from .stream import LatentStream
from .watch import BlockWatch

NO_BREAK = "\u00a0"


def say(node_id: str, text: str) -> None:
    """Shows `text` on the node in every open browser."""
    PromptServer.instance.send_progress_text(text, node_id)


class RenderFeedback:
    """Turns a render's events into ComfyUI's progress: every denoising call and every commit is one tick."""

    def __init__(self, stream: LatentStream, node_id: str):
        self._recipe = stream.recipe
        self._geometry = stream.recipe.geometry
        self._render = stream.folder.path.name
        self._known = stream.folder.known_blocks
        self._node_id = node_id
        self._cache = size_text(stream.plan().cache_bytes)
        denoising = stream.recipe.denoising
        self._ends = [0]
        for block in range(self._geometry.blocks):
            self._ends.append(self._ends[-1] + denoising.calls(block) + 1)
        self._bar = comfy.utils.ProgressBar(self._ends[-1], node_id=node_id)
        self._started = time.monotonic()
        self._sampled = 0
        self._notes: list[str] = []
        self._preview = MovingPreview(self._bar, node_id, self._geometry.fps)
        self._watch = BlockWatch(stream)

    def close(self) -> None:
        """Stops what still plays on the node."""
        self._preview.close()

    def show(self, event: RenderEvent) -> None:
        if isinstance(event, StepDone):
            # Counted from the block's end: a rolling block's first steps ran in the windows of those before it.
            self._bar.update_absolute(self._ends[event.block + 1] - (event.steps - event.step))
        elif isinstance(event, BlockDone):
            self._sampled += not event.reused
            self._bar.update_absolute(self._ends[event.block + 1])
            say(self._node_id, self._line(event.block, event.reused))
            self._watch.done(event)
        elif isinstance(event, Replayed):
            self._bar.update_absolute(self._ends[event.block + 1])
            say(self._node_id, self._line(event.block, True))
        elif isinstance(event, Note):
            self._notes.append(event.text)
            say(self._node_id, event.text)
        else:
            self._preview.play(event.frames)

    def summary(self) -> str:
        """What was re-used and what was made, for the history."""
        reused = f"blocks 1 to {self._known} re-used" if self._known else "no block re-used"
        lines = [f"render {self._render}: {reused}, {self._sampled} of {self._geometry.blocks} sampled", *self._notes]
        return "\n".join(lines)

    def _line(self, block: int, reused: bool) -> str:
        done = block + 1
        g = self._geometry
        pace = (time.monotonic() - self._started) / max(1, self._sampled)
        how = "re-used" if reused else f"{pace:.2f} s/block, {pace * (g.blocks - done):.0f}{NO_BREAK}s{NO_BREAK}left"
        made = f"{self._recipe.frames_before(done) / g.fps:.1f} of {self._recipe.film_frames / g.fps:.1f} s of video"
        return f"block {done}/{g.blocks} | {made} | {how} | cache {self._cache}"
