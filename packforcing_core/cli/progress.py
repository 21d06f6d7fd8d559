"""Runs a render on the terminal: writes the video and shows progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..geometry import block_count, size_text
from ..recipe.recipe import Recipe
from ..render.recording import Replayed
from ..render.render import Render
from ..render.writing import Finished, Note, RenderEvent, WrittenBlock
from ..sampler.denoising import StepDone


class _SecondsPerBlock(ProgressColumn):
    def render(self, task: Task) -> Text:
        blocks = task.fields["blocks_written"]
        return Text(f"{task.elapsed / blocks:.2f} s/block" if blocks and task.elapsed else "- s/block")


def build_console() -> Console:
    """A console that prints file names as they are: no markup, and no line breaks that a log would keep."""
    return Console(markup=False, highlight=False, soft_wrap=True)


def run_render(render: Render, console: Console) -> Path:
    """Runs a render and returns the video file. The same call resumes it after a crash."""
    started, folder = time.monotonic(), render.folder
    for note in folder.notes:
        console.print(note, style="yellow")
    if folder.known_blocks:
        console.print(
            f"{folder.known_blocks} of {block_count(folder.manifest.blocks)} are finished already, in {folder.path}"
        )
    console.print(f"the video grows in {render.growing}")
    try:
        with closing(render.events()) as events:
            path = _show(events, render.recipe, render.plan.buffer_bytes, console)
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to resume.", style="yellow")
        raise
    _say_done(path, render.recipe, time.monotonic() - started, console)
    return path


def _say_done(video: Path, recipe: Recipe, took: float, console: Console) -> None:
    frames = recipe.video_frames
    console.print(f"{video.resolve()}: {frames} frames, {frames / recipe.geometry.fps:.2f} s of video in {took:.1f} s")


def _show(events: Iterator[RenderEvent], recipe: Recipe, cache: int, console: Console) -> Path:
    """Shows the events of a render until it ends; returns the finished file."""
    geometry = recipe.geometry
    columns = (
        TextColumn("block {task.fields[block]}/{task.fields[blocks]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[seconds]:.1f}/{task.fields[total_seconds]:.1f} s of video"),
        _SecondsPerBlock(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn(f"KV cache {size_text(cache)}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "render",
            total=geometry.blocks,
            block=0,
            blocks=geometry.blocks,
            seconds=0.0,
            total_seconds=recipe.video_frames / geometry.fps,
            blocks_written=0,
        )
        for event in events:
            if isinstance(event, StepDone):
                progress.update(
                    task, block=event.block + 1, completed=event.block + (event.step + 1) / (event.steps + 1)
                )
            elif isinstance(event, WrittenBlock):
                done = event.block + 1
                written = recipe.frames_before(done) / geometry.fps
                progress.update(task, seconds=written, blocks_written=done)
            elif isinstance(event, Replayed):
                progress.update(task, block=event.block + 1, completed=event.block + 1)
            elif isinstance(event, Note):
                progress.console.print(event.text, style="yellow")
            elif isinstance(event, Finished):
                path = event.path
        progress.update(task, completed=geometry.blocks)
    return path
