"""Feedback on a node during and after a run: the progress bar, the growing video, and a line of text."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

import comfy.model_management
import comfy.utils

from ..packforcing_core.geometry import block_count, size_text
from ..packforcing_core.render.recording import Replayed
from ..packforcing_core.render.writing import Finished, Note, RenderEvent
from ..packforcing_core.sampler.denoising import BlockDone, StepDone
from .growing import GrowingVideo, relative_to_output
from .preview import MovingPreview
from .stream import LatentStream
from .tell import Line
from .watch import BlockWatch

NO_BREAK = "\u00a0"


class RenderFeedback:
    """Turns a render's events into ComfyUI's progress bar and into the text and video on the node. Use it with `with`.

    Each denoising call and each cache write is one tick of the bar. `video`, if given, is shown while it grows and
    stays on the node after the render ends, even if it fails. `notes` stand below its summary.
    """

    def __init__(
        self, stream: LatentStream, node_id: str, video: GrowingVideo | None = None, notes: Iterable[str] = ()
    ):
        self._recipe = stream.recipe
        self._geometry = stream.recipe.geometry
        self._render = stream.folder.path.name
        self._known = stream.folder.known_blocks
        self._video = video
        self._cache = size_text(stream.plan().buffer_bytes)
        denoising, cuts = stream.recipe.denoising, stream.folder.cuts
        self._ends = [0]
        for block in range(self._geometry.blocks):
            self._ends.append(self._ends[-1] + denoising.calls(block, block in cuts) + 1)
        self._bar = comfy.utils.ProgressBar(self._ends[-1], node_id=node_id)
        self._line = Line.of(node_id)
        self._since = self._until = time.monotonic()  # When the first sampled block began, and when the newest ended.
        self._sampled = self._done = 0
        self._reused = False
        self._notes = list(notes)
        self._preview = MovingPreview(self._bar, self._line, self._geometry.fps)
        self._watch = BlockWatch(stream)
        read = f"{block_count(self._known)} of {self._geometry.blocks} finished before: reading them"
        start = "reading the start" if self._recipe.given else "sampling the first block"
        self._tell("running", read if self._known else start)

    def __enter__(self) -> RenderFeedback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._preview.close()
        if error is None:
            self._tell("done", self.summary())
        elif isinstance(error, comfy.model_management.InterruptProcessingException):
            self._tell("stopped", f"Stopped at {self._made(self._done)}. Press Run to resume.")
        else:
            self._tell("failed", f"{error}\nFailed at {self._made(self._done)}.")

    def show(self, event: RenderEvent) -> None:
        if isinstance(event, StepDone):
            # Timed from the previous block's end: with a rolling window, a block's first steps run before that.
            self._bar.update_absolute(self._ends[event.block + 1] - (event.steps - event.step))
        elif isinstance(event, BlockDone):
            self._sampled += not event.reused
            self._block(event.block, event.reused)
            self._watch.done(event)
        elif isinstance(event, Replayed):
            self._block(event.block, True)
        elif isinstance(event, Note):
            self._notes.append(event.text)
            self._tell("running", event.text)
        elif isinstance(event, Finished):
            if self._video is not None:
                self._video.path = event.path
        else:
            self._preview.play(event.frames)
            if self._video is not None and self._video.has_grown():
                self._tell("running", self._progress())

    def summary(self) -> str:
        """What was sampled and what was reused, for the job history."""
        given = len(self._recipe.given)
        reused = max(0, self._known - given)  # What is given is saved too.
        parts = [
            *([f"{given} given"] if given else []),
            f"{block_count(reused)} reused" if reused else "no block reused",
            f"{self._sampled} of {self._geometry.blocks - given} sampled",
            *([f"{self._pace():.2f}{NO_BREAK}s per block"] if self._sampled else []),
            f"KV cache {self._cache}",
        ]
        lines = [f"render {self._render}: {', '.join(parts)}", *self._notes]
        return "\n".join(lines)

    def _block(self, block: int, reused: bool) -> None:
        self._done, self._reused = block + 1, reused
        self._until = time.monotonic()
        if not self._sampled:
            self._since = self._until
        self._bar.update_absolute(self._ends[self._done])
        self._tell("running", self._progress())

    def _tell(self, state: str, text: str) -> None:
        if self._video is None:
            self._line.tell(state=state, text=text)
            return
        seen = self._video.seen(finished=state == "done")
        if state == "done":
            text = f"{self._made(self._geometry.blocks)} | {relative_to_output(self._video.path)}\n{text}"
        elif state != "running" and seen["segments"]:
            text = f"{text}\nThe video so far: {relative_to_output(self._video.growing)}"
        share = self._done / self._geometry.blocks
        self._line.tell(state=state, text=text, video=seen, share=share)

    def _pace(self) -> float:
        """Seconds per sampled block so far, without what finishes the file."""
        return (self._until - self._since) / max(1, self._sampled)

    def _made(self, blocks: int) -> str:
        """Seconds of video in the first `blocks` blocks. In seconds at any length, as the other nodes say it."""
        return f"{self._recipe.frames_before(blocks) / self._geometry.fps:.1f} s"

    def _progress(self) -> str:
        g, done, given = self._geometry, self._done, len(self._recipe.given)
        if self._reused and done <= given:
            return f"reading the start: block {done} of {given} | KV cache {self._cache}"
        pace = self._pace()
        left = clock(pace * (g.blocks - done)).replace(" ", NO_BREAK)
        how = "reused" if self._reused else f"{left}{NO_BREAK}left | {pace:.2f}{NO_BREAK}s per block"
        made = f"{self._made(done)} of {self._made(g.blocks)}"
        return f"block {done}/{g.blocks} | {made} | {how} | KV cache {self._cache}"


def clock(seconds: float) -> str:
    """Time to wait: "12.5 s" below a minute, "1:05" from there on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
