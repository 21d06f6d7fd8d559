"""The film of a recorded render: it goes on where it stopped, and a full GPU is answered with less appetite."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import PackForcingError
from .folder.blocks import StateStore
from .folder.files import FolderError, copy_start, locked
from .folder.fingerprint import fingerprint
from .folder.folder import RenderFolder
from .recorded import DEFAULT_SNAPSHOT_BLOCKS, Replayed
from .render import FilmedBlock, Recipe, film_events
from .sampler.rollout import DECODER, Event
from .vae.decoders import streaming_decoder
from .vae.streaming import StreamingDecoder
from .vae.tiny import TinyDecoder, TinyVAE
from .vae.wan_vae import WanVAE
from .video.boxes import FilmError, scan_film
from .video.format import VideoFormat
from .video.writer import SegmentedWriter


class Source(Protocol):
    """Events of the blocks from `first` on; `frugal` asks for as little memory as can be."""

    def __call__(self, *, first: int, frugal: bool) -> Iterator[Event | Replayed]: ...


@dataclass(frozen=True)
class Note:
    """Something that the user should hear of while the render runs."""

    text: str


RenderEvent = Event | Replayed | FilmedBlock | Note


@dataclass(frozen=True)
class FilmJob:
    """Which film to make of a render: `path` the finished file, `vae` what decodes and `vae_name` its fingerprint.

    `shared_vae`: the rollout decodes with the same weights, so its states serve this film too. At least the last
    `tail_frames` are decoded again when everything is there. The growing film stays for an extension if `keep_growing`.
    """

    path: Path
    video_format: VideoFormat
    blocks_per_segment: int
    vae: WanVAE | TinyVAE
    vae_name: str
    shared_vae: bool = False
    snapshot_blocks: int = DEFAULT_SNAPSHOT_BLOCKS
    tail_frames: int = 1
    keep_growing: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Short and the same for the same film."""
        made_of = self.video_format
        parts = [made_of.codec, made_of.crf, str(made_of.rate), self.blocks_per_segment, self.vae_name]
        if made_of.zoom > 1:  # Without it the names are those of films that were begun before there was a zoom.
            parts.append(made_of.zoom)
        return f"{made_of.codec}-{fingerprint(parts)[:8]}"


@dataclass(frozen=True)
class FilmStart:
    """The film has `segment` segments; decoding begins at `block`, at or before their end, in this state."""

    segment: int = 0
    block: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)


def growing_film(folder: RenderFolder, job: FilmJob) -> Path:
    """The film so far; each take has its own."""
    return _film_of_take(folder, job, len(folder.manifest.takes) - 1)


def _film_of_take(folder: RenderFolder, job: FilmJob, take: int) -> Path:
    return folder.film_folder / f"{job.name}-{take}.growing.mp4"


def filmed_render(folder: RenderFolder, recipe: Recipe, job: FilmJob, source: Source) -> Iterator[RenderEvent]:
    """Runs the render into its film; the finished file appears at `job.path` when the iterator has ended.

    The folder is locked meanwhile. When memory runs out the render goes on from the folder with the bank in host memory
    and the smallest decode steps; FolderError when that does not help. Whatever is raised, what is there stays playable
    and the same call goes on.
    """
    with locked(folder.path):
        frugal = False
        while True:
            before = _progress(folder, job)
            try:
                yield from _attempt(folder, recipe, job, source, frugal)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).partition("\n")[0] or "host memory"
            except OSError as error:
                raise FolderError(
                    f"{folder.path} cannot be used: {error}. Mend that and run the same again."
                ) from error
            # Only behind the handler is the failed attempt, which the traceback held, free to go.
            if frugal and _progress(folder, job) == before:
                raise FolderError(
                    f"Out of memory, also with the bank in host memory and the smallest decode steps: {problem}. "
                    f"{folder.known_blocks} of {folder.manifest.blocks} blocks are safe in {folder.path}. Close other "
                    "programs or lower the memory policy's knobs in a new render; the same render goes on when there "
                    "is room."
                )
            frugal = True
            free_memory()
            folder.telemetry.append("out of memory", problem=problem)
            yield Note(
                f"Out of memory ({problem}): freed what could be, moved the bank to host memory, decoding in smaller "
                f"steps, going on from block {folder.known_blocks}"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on a GPU or in the host, where torch says so in words only."""
    words = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _progress(folder: RenderFolder, job: FilmJob) -> tuple[int, int]:
    film = growing_film(folder, job)
    return folder.known_blocks, film.stat().st_size if film.exists() else 0


def _attempt(folder: RenderFolder, recipe: Recipe, job: FilmJob, source: Source, frugal: bool) -> Iterator[RenderEvent]:
    start = film_start(folder, recipe, job)
    decoder = streaming_decoder(job.vae)
    decoder.restore(start.state)
    try:
        writer = _writer(folder, recipe, job, start.segment)
    except FilmError:  # Another ffmpeg began it: its frames are still to be had from the latents.
        start = FilmStart()
        decoder.reset()
        writer = _writer(folder, recipe, job, 0)
    record = _Record(folder, job)
    with writer, closing(source(first=start.block, frugal=frugal)) as latents:
        events = film_events(
            latents,
            decoder,
            writer,
            job.blocks_per_segment,
            first_block=_block_of(recipe, job, start.segment),
            left_out=recipe.left_out_blocks,
            record=record,
            frugal=frugal,
        )
        # Closed before the writer is left: the thread that films must not meet a writer that is being closed.
        with closing(events):
            yield from events
        writer.finish(job.metadata, keep_growing=job.keep_growing)


def _writer(folder: RenderFolder, recipe: Recipe, job: FilmJob, first_segment: int) -> SegmentedWriter:
    g = recipe.geometry
    return SegmentedWriter(job.path, g.width, g.height, job.video_format, first_segment, growing_film(folder, job))


class _Record:
    """Notes of a film in its render's folder: telemetry, and the decoder's state at some segment ends."""

    def __init__(self, folder: RenderFolder, job: FilmJob):
        self._folder, self._job = folder, job
        self._states = _states(folder, job)

    def filmed(self, block: int, frames: np.ndarray) -> None:
        self._folder.telemetry.film(block, self._folder.manifest.take_of(block), frames)

    def segment_closed(self, next_block: int, decoder: StreamingDecoder | TinyDecoder) -> None:
        every, manifest = self._job.snapshot_blocks, self._folder.manifest
        if not every or next_block >= manifest.blocks:
            return
        if next_block // every > (next_block - self._job.blocks_per_segment) // every:
            self._states.save(next_block, manifest.take_of(next_block - 1), decoder.snapshot())


def _states(folder: RenderFolder, job: FilmJob) -> StateStore:
    return StateStore(folder.film_folder / job.name)


def film_start(folder: RenderFolder, recipe: Recipe, job: FilmJob) -> FilmStart:
    """Where the film goes on: behind its last good segment, with decoding from the nearest saved state of a decoder."""
    _continue_earlier_take(folder, recipe, job)
    segments = _good_segments(growing_film(folder, job), folder, recipe, job)
    end = _block_of(recipe, job, segments)
    states = [(block, state) for block, state, _ in _first(_states(folder, job).readable(folder.manifest, end))]
    if job.shared_vae:
        for block, tensors, _ in _first(folder.snapshots.readable(folder.manifest, end)):
            named = {name.removeprefix(DECODER): t for name, t in tensors.items() if name.startswith(DECODER)}
            states.append((block, named))
    decoder = streaming_decoder(job.vae)
    for block, state in sorted(states, key=lambda item: item[0], reverse=True):
        try:
            decoder.restore(state)
        except PackForcingError:
            continue
        return FilmStart(segments, block, state)
    return FilmStart(segments)


def _first(items: Iterator) -> list:
    return [item for item, _ in zip(items, range(1), strict=False)]


def _good_segments(film: Path, folder: RenderFolder, recipe: Recipe, job: FilmJob) -> int:
    """Whole segments of finished blocks, so many that enough is left to make for `tail_frames`.

    A segment that an exception closed early, or the short last one of a clip that is made longer, is not whole.
    """
    if not film.exists():
        return 0
    try:
        segments = scan_film(film).segments
    except FilmError:
        return 0
    total, known, good = recipe.frames_before(folder.manifest.blocks), folder.known_blocks, 0
    for number, segment in enumerate(segments):
        first, following = (_block_of(recipe, job, n) for n in (number, number + 1))
        end = recipe.frames_before(following)
        whole = segment.frames == end - recipe.frames_before(first)
        if not whole or following > known or end > total - job.tail_frames:
            break
        good += 1
    return good


def _block_of(recipe: Recipe, job: FilmJob, segment: int) -> int:
    """The first block of a segment of the film."""
    return recipe.left_out_blocks + segment * job.blocks_per_segment


def _continue_earlier_take(folder: RenderFolder, recipe: Recipe, job: FilmJob) -> None:
    """A retake's film begins as a copy of the segments that it keeps; the earlier take keeps its own film."""
    manifest, film = folder.manifest, growing_film(folder, job)
    first_block = manifest.takes[-1].first_block
    if film.exists() or first_block == 0:
        return
    earlier = _film_of_take(folder, job, manifest.take_of(first_block - 1))
    kept = min(
        _good_segments(earlier, folder, recipe, job), (first_block - recipe.left_out_blocks) // job.blocks_per_segment
    )
    if kept > 0:
        copy_start(earlier, film, scan_film(earlier).end(kept))
