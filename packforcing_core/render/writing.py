"""Writes the video of a recorded render: the file grows on disk, and a restarted render resumes it. If the GPU runs out
of memory, it continues with settings that need less.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..devices import is_out_of_memory
from ..folder.files import FolderError, copy_start, locked
from ..folder.fingerprint import fingerprint
from ..folder.folder import RenderFolder
from ..geometry import block_count
from ..ranges import in_range
from ..recipe.recipe import Recipe
from ..sampler.denoising import BlockDone, Event
from ..vae.decoders import push_block, streaming_decoder
from ..vae.receptive import frames_looked_back, warm_up
from ..vae.streaming import StreamingDecoder, to_frames
from ..vae.tiny import TinyDecoder, TinyVAE
from ..vae.wan_vae import WanVAE
from ..video.boxes import VideoError, scan_video
from ..video.format import VideoFormat
from ..video.writer import SegmentedWriter
from .output import checked_output, publish, require_writable
from .overlap import overlapped
from .recording import Replayed, latents_before
from .sums import SegmentSums

Before = Callable[[int, int], Sequence[Tensor]]
"""`before(block, frames)`: latents of the blocks before `block`, enough for that many latent frames, or all of them."""


class FrameWriter(Protocol):
    """Takes the frames of a video and ends its segments: a `SegmentedWriter`."""

    def write(self, frames: np.ndarray) -> None: ...

    def end_segment(self) -> None: ...


class Source(Protocol):
    """Events of the blocks from `first` on; with `frugal`, using as little memory as possible."""

    def __call__(self, *, first: int, frugal: bool) -> Generator[Event | Replayed, None, None]: ...


@dataclass(frozen=True)
class WrittenBlock:
    """A block has been decoded and handed to the encoder: `frames` uint8 [T, H, W, 3]."""

    block: int
    frames: np.ndarray


@dataclass(frozen=True)
class Note:
    """A message for the user while the render runs."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The video is complete in the file `path`."""

    path: Path


RenderEvent = Event | Replayed | WrittenBlock | Note | Finished


@dataclass(frozen=True)
class VideoJob:
    """The video to make from a render: `path` of the finished file (an existing name gets a number), the decoder `vae`,
    and its fingerprint `vae_name`.

    At least the last `tail_frames` frames are decoded again if the video is finished already. `keep_growing` keeps the
    growing video, so that the render can be extended.
    """

    path: Path
    video_format: VideoFormat
    blocks_per_segment: int
    vae: WanVAE | TinyVAE
    vae_name: str
    tail_frames: int = 1
    keep_growing: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        checked_output(self.path)
        in_range("blocks_per_segment", self.blocks_per_segment)
        in_range("last_frames", self.tail_frames)

    @property
    def name(self) -> str:
        """A short name, the same for the same video."""
        made_of = self.video_format
        parts = [made_of.codec, made_of.crf, str(made_of.rate), made_of.zoom, self.blocks_per_segment, self.vae_name]
        return f"{made_of.codec}-{fingerprint(parts)[:8]}"


def written_events(
    events: Iterator[Event | Replayed],
    decoder: StreamingDecoder | TinyDecoder,
    writer: FrameWriter,
    blocks_per_segment: int,
    *,
    left_out: int = 0,
    before: Before = lambda block, frames: (),
    written: Callable[[BlockDone, np.ndarray], None] = lambda done, frames: None,
    frugal: bool = False,
    cuts: Collection[int] = (),
) -> Generator[Event | Replayed | WrittenBlock, None, None]:
    """Decodes and encodes each block while the next one is sampled, and closes a segment every `blocks_per_segment`.

    A block that carries its video is not decoded again. Blocks before `left_out` are not shown in the video. The
    decoder is new; it is warmed up with the latents `before` the first block. `written` is called for each written
    block. `frugal` decodes in the smallest steps, and the rollout waits for it. `cuts` are the first blocks of scenes.
    """
    beside = _side_stream(decoder.device)
    cold = [True]

    def decoded(done: BlockDone) -> Tensor:
        if done.video is not None:
            return done.video
        if cold:
            cold.clear()
            warm_up(decoder, before(done.block, frames_looked_back(decoder.vae)))
        return push_block(decoder, done.latents, done.block in cuts, frame_by_frame=frugal)

    def write(done: BlockDone) -> WrittenBlock:
        with beside:
            made = WrittenBlock(done.block, to_frames(decoded(done)))
        if done.block >= left_out:
            writer.write(made.frames)
            if (done.block + 1 - left_out) % blocks_per_segment == 0:
                writer.end_segment()
            written(done, made.frames)
        return made

    return overlapped(events, BlockDone, write, ahead=0 if frugal else 1)


def _side_stream(device: torch.device) -> AbstractContextManager:
    """On a GPU a separate stream, so that decoding does not queue behind the transformer; elsewhere nothing."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # The weights may still be being copied.
    return torch.cuda.stream(stream)


def growing_video(folder: RenderFolder, job: VideoJob) -> Path:
    """The growing video; each take has its own file."""
    return _video_of_take(folder, job, len(folder.manifest.takes) - 1)


def _video_of_take(folder: RenderFolder, job: VideoJob, take: int) -> Path:
    return folder.path / "film" / f"{job.name}-{take}.growing.mp4"


def written_render(
    folder: RenderFolder, recipe: Recipe, job: VideoJob, source: Source
) -> Generator[RenderEvent, None, None]:
    """Runs the render and writes its video; the last event is `Finished`.

    The folder is locked meanwhile. If memory runs out, the render resumes from the folder with the bank in system RAM
    and the smallest decode steps; if that fails too, it raises FolderError. After any error the video so far stays
    playable, and the same call resumes.
    """
    require_writable(job.path)
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
                problem = str(error).partition("\n")[0] or "system RAM"
            except OSError as error:
                raise FolderError(
                    f"{folder.path} cannot be used: {error}. Fix the cause and run the same again."
                ) from error
            # The traceback holds the failed attempt, which can only be freed after the except block.
            if frugal and _progress(folder, job) == before:
                raise FolderError(
                    f"Out of memory, also with the bank in system RAM and the smallest decode steps: {problem}. "
                    f"{folder.known_blocks} of {block_count(folder.manifest.blocks)} are safe in {folder.path}. "
                    "Close other programs or lower the policy's knobs in a new render; the same render resumes when "
                    "there is room."
                )
            frugal = True
            free_memory()
            folder.telemetry.append("out of memory", problem=problem)
            yield Note(
                f"Out of memory ({problem}): freed unused memory, moved the bank to system RAM, decoding in smaller "
                f"steps, resuming with {block_count(folder.known_blocks)} finished"
            )


def free_memory() -> None:
    gc.collect()
    for kind, there in ((torch.cuda, torch.cuda), (torch.xpu, torch.xpu), (torch.mps, torch.backends.mps)):
        if there.is_available():
            kind.empty_cache()


def _progress(folder: RenderFolder, job: VideoJob) -> tuple[int, int]:
    video = growing_video(folder, job)
    return folder.known_blocks, video.stat().st_size if video.exists() else 0


def _attempt(
    folder: RenderFolder, recipe: Recipe, job: VideoJob, source: Source, frugal: bool
) -> Iterator[RenderEvent]:
    """One attempt at the render: events of the blocks that the video lacks, then the finished video."""
    video = growing_video(folder, job)
    _continue_earlier_take(folder, recipe, job)
    segments = good_segments(video, folder, recipe, job)
    try:
        writer = _writer(folder, recipe, job, segments)
    except VideoError:  # Another ffmpeg started it: its frames are decoded again from the latents.
        segments, writer = 0, _writer(folder, recipe, job, 0)
    sums = SegmentSums(video)
    sums.cut(segments)

    def written(done: BlockDone, frames: np.ndarray) -> None:
        folder.telemetry.film(done.block, folder.manifest.take_of(done.block), frames)
        if writer.segments > sums.segments:
            sums.append()

    with writer, closing(source(first=_block_of(recipe, job, segments), frugal=frugal)) as latents:
        events = written_events(
            latents,
            streaming_decoder(job.vae),
            writer,
            job.blocks_per_segment,
            left_out=recipe.left_out_blocks,
            before=lambda block, frames: latents_before(folder, block, frames),
            written=written,
            frugal=frugal,
            cuts=folder.cuts,
        )
        # Closed before the writer: the encoding thread must not use a writer that is being closed.
        with closing(events):
            yield from events
        finished = publish(writer.finish(job.metadata, keep_growing=job.keep_growing), job.path)
        folder.finish(finished.name)
        if not job.keep_growing:
            sums.remove()
    yield Finished(finished)


def _writer(folder: RenderFolder, recipe: Recipe, job: VideoJob, first_segment: int) -> SegmentedWriter:
    g = recipe.geometry
    # A name for this render alone, so that two renders with the same output do not share a temporary file.
    path = job.path.with_name(f"{job.path.stem[:60]}.{folder.manifest.identity[:8]}.mp4")
    return SegmentedWriter(path, g.width, g.height, job.video_format, first_segment, growing_video(folder, job))


def good_segments(video: Path, folder: RenderFolder, recipe: Recipe, job: VideoJob) -> int:
    """The number of complete, undamaged segments of finished blocks, leaving out enough for `tail_frames`.

    A segment that an exception closed early, or the short last one of a clip that is extended, is not complete.
    """
    if not video.exists():
        return 0
    try:
        segments = scan_video(video).segments
    except VideoError:
        return 0
    missing = folder.missing_blocks()
    known = missing[0] if missing else folder.manifest.blocks
    total, good, sound = recipe.frames_before(folder.manifest.blocks), 0, SegmentSums(video).sound()
    for number, segment in enumerate(segments[:sound]):
        first, following = (_block_of(recipe, job, n) for n in (number, number + 1))
        end = recipe.frames_before(following)
        whole = segment.frames == end - recipe.frames_before(first)
        if not whole or following > known or end > total - job.tail_frames:
            break
        good += 1
    return good


def _block_of(recipe: Recipe, job: VideoJob, segment: int) -> int:
    """The first block of a segment of the video."""
    return recipe.left_out_blocks + segment * job.blocks_per_segment


def _continue_earlier_take(folder: RenderFolder, recipe: Recipe, job: VideoJob) -> None:
    """Starts a retake's video as a copy of the segments that it keeps; the earlier take keeps its own video."""
    manifest, video = folder.manifest, growing_video(folder, job)
    first_block = manifest.takes[-1].first_block
    if video.exists() or first_block == 0:
        return
    earlier = _video_of_take(folder, job, manifest.take_of(first_block - 1))
    kept = min(
        good_segments(earlier, folder, recipe, job), (first_block - recipe.left_out_blocks) // job.blocks_per_segment
    )
    if kept > 0:
        SegmentSums(earlier).copy_to(video, kept)
        copy_start(earlier, video, scan_video(earlier).end(kept))
