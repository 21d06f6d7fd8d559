"""Runs a render on the terminal: the film on disk, the progress on the screen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..errors import PackForcingError
from ..folder.folder import RenderFolder
from ..geometry import size_text
from ..recipe.recipe import Recipe
from ..render.filming import FilmedBlock, FilmJob, Note, RenderEvent, Source, film_events, filmed_render, growing_film
from ..render.recording import Replayed
from ..sampler.denoising import Event, StepDone
from ..vae.streaming import StreamingDecoder
from ..video.format import VideoFormat
from ..video.writer import SegmentedWriter


class _SecondsPerBlock(ProgressColumn):
    def render(self, task: Task) -> Text:
        blocks = task.fields["blocks_filmed"]
        return Text(f"{task.elapsed / blocks:.2f} s/block" if blocks and task.elapsed else "- s/block")


def build_console() -> Console:
    """A console that prints file names as they are: no markup in them, no line broken where a log would keep it."""
    return Console(markup=False, highlight=False, soft_wrap=True)


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... of which neither the film nor its growing form exists."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_name(f"{candidate.stem}.growing.mp4").exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


@dataclass(frozen=True)
class Target:
    """The film to write: its name (one that is taken gets a number), its format, and how often it is safe on disk."""

    path: Path
    video_format: VideoFormat
    blocks_per_segment: int

    def __post_init__(self):
        if self.blocks_per_segment < 1:
            raise PackForcingError(f"blocks-per-segment is {self.blocks_per_segment}; expected 1 or more.")
        if not self.path.name:
            raise PackForcingError(f"Got the output {str(self.path)!r}; expected a file name that ends in .mp4.")
        if self.path.suffix.lower() != ".mp4":
            raise PackForcingError(f"Got the output {self.path.name}; expected a file name that ends in .mp4.")


def render_film(
    latents: Iterator[Event],
    recipe: Recipe,
    cache_bytes: int,
    decoder: StreamingDecoder,
    target: Target,
    console: Console,
) -> Path:
    """Films the blocks of `latents` and returns the film's path. What is filmed stays playable if it is stopped."""
    geometry = recipe.geometry
    output = free_name(target.path)
    started = time.monotonic()
    with (
        torch.inference_mode(),
        SegmentedWriter(output, geometry.width, geometry.height, target.video_format) as writer,
    ):
        console.print(f"the film grows in {writer.growing_path}")
        # Closed before the writer is left: the thread that films must not meet a writer that is being closed.
        with closing(film_events(latents, decoder, writer, target.blocks_per_segment)) as events:
            _show(events, recipe, cache_bytes, console)
        film = writer.finish()
    _say_done(film, recipe, time.monotonic() - started, console)
    return film


def render_recorded(
    source: Source, folder: RenderFolder, recipe: Recipe, cache_bytes: int, job: FilmJob, console: Console
) -> Path:
    """Runs the render of `folder` to its film and returns the film's path; the same call goes on after any crash."""
    started, known = time.monotonic(), folder.known_blocks
    for note in folder.notes:
        console.print(note, style="yellow")
    if known:
        console.print(f"{known} of {folder.manifest.blocks} blocks are there already, in {folder.path}")
    console.print(f"the film grows in {growing_film(folder, job)}")
    with torch.inference_mode(), closing(filmed_render(folder, recipe, job, source)) as events:
        _show(events, recipe, cache_bytes, console)
    _say_done(job.path, recipe, time.monotonic() - started, console)
    return job.path


def _say_done(film: Path, recipe: Recipe, took: float, console: Console) -> None:
    frames = recipe.film_frames
    console.print(f"{film.resolve()}: {frames} frames, {frames / recipe.geometry.fps:.2f} s of video in {took:.1f} s")


def _show(events: Iterator[RenderEvent], recipe: Recipe, cache_bytes: int, console: Console) -> None:
    geometry = recipe.geometry
    columns = (
        TextColumn("block {task.fields[block]}/{task.fields[blocks]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[seconds]:.1f}/{task.fields[total_seconds]:.1f} s of video"),
        _SecondsPerBlock(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn(f"cache {size_text(cache_bytes)}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "render",
            total=geometry.blocks,
            block=0,
            blocks=geometry.blocks,
            seconds=0.0,
            total_seconds=recipe.film_frames / geometry.fps,
            blocks_filmed=0,
        )
        for event in events:
            if isinstance(event, StepDone):
                progress.update(
                    task, block=event.block + 1, completed=event.block + (event.step + 1) / (event.steps + 1)
                )
            elif isinstance(event, FilmedBlock):
                done = event.block + 1
                filmed = recipe.frames_before(done) / geometry.fps
                progress.update(task, seconds=filmed, blocks_filmed=done)
            elif isinstance(event, Replayed):
                progress.update(task, block=event.block + 1, completed=event.block + 1)
            elif isinstance(event, Note):
                progress.console.print(event.text, style="yellow")
        progress.update(task, completed=geometry.blocks)
