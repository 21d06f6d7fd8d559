"""Writes frames to a video that plays while it grows, survives a crash, and can be continued exactly.

The growing video is a fragmented mp4 beside the final one. Each segment comes from a fresh encoder and is appended as a
whole, so its bytes depend only on its own frames. A video continued in another process is byte for byte equal to an
uninterrupted one, and appending costs the same at block 10,000 as at block 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import PackForcingError
from .boxes import ScannedVideo, VideoError, place_segment, scan_video, split_segment
from .final import write_final
from .format import VideoFormat
from .process import Encoder, FfmpegError, has_encoder

_GROWING = ("-movflags", "empty_moov+default_base_moof+skip_trailer")
_NO_CUT = ("-frag_duration", "2000000000")  # microseconds: one fragment per segment, however long it is
# An incomplete index makes players refuse the whole file. So a segment is first written inside a free box that lasts to
# the end of the file, which players skip. Then its real header (also 8 bytes) is written over the box's header.
_UNTIL_THE_END = b"\0\0\0\0free"


class SegmentedWriter:
    """Writes frames to `path` (an .mp4) through a growing video beside it.

        with SegmentedWriter("out/video.mp4", 832, 480, VideoFormat(fps=16)) as writer:
            for number, frames in enumerate(blocks, start=1):    # frames: uint8 [T, 480, 832, 3], RGB
                writer.write(frames)
                if number % 8 == 0:
                    writer.end_segment()                         # from here on these frames play and are safe
            writer.finish(metadata={"workflow": workflow})

    `first_segment` continues a video: its first `first_segment` segments are kept and the rest is cut off. The caller
    continues with the frame after `frames_written`. With 0 an existing video is started over. `growing_path` is the
    video so far, playable from the first closed segment on; `growing` sets another place for it.

    Odd sizes are padded to even ones by repeating the last row or column (except for codec lossless).

    Folder, codec, size and the video to continue are checked here, before any work (PackForcingError). Leaving the
    `with` block, also by an exception, closes the open segment; `finish` makes the final file. The encoded bytes of one
    segment are in memory until it is closed.
    """

    def __init__(
        self,
        path: Path | str,
        width: int,
        height: int,
        video_format: VideoFormat,
        first_segment: int = 0,
        growing: Path | None = None,
    ):
        if width < 1 or height < 1 or first_segment < 0:
            raise PackForcingError(
                f"Got size {width}x{height} and first segment {first_segment}; expected a size of 1x1 or more."
            )
        self.path = Path(path)
        self.growing_path = growing or self.path.with_name(f"{self.path.stem}.growing.mp4")
        if self.path.suffix.lower() != ".mp4":
            raise PackForcingError(f"Got the file name {self.path.name} but expected one that ends in .mp4.")
        self.width, self.height, self.format = width, height, video_format
        self._arguments = _encoder_arguments(width, height, video_format)
        self._encoder: Encoder | None = None
        self._open_frames = 0
        self._problem = ""
        self._init = self._try_encoder()
        video = self._video_to_continue(first_segment)
        self.segments = first_segment
        self._closed_frames = video.frames(first_segment)
        self._size = video.end(first_segment)
        self._file = self._open_video(new=first_segment == 0)

    @property
    def frames_written(self) -> int:
        """Frames of the video so far, including the open segment."""
        return self._closed_frames + self._open_frames

    @property
    def safe_frames(self) -> int:
        """Frames in closed segments, which a crash cannot lose."""
        return self._closed_frames

    def __enter__(self) -> SegmentedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if self._problem:  # Finished, aborted or failed: nothing is open.
                return
            if error is None:
                self.end_segment()
            else:
                with suppress(PackForcingError):  # The error that is being raised says more than this one.
                    self._close_segment(strict=False)
        finally:
            self.abort()
            if not self.segments:  # A video without a frame would not play.
                with suppress(OSError):
                    self.growing_path.unlink()

    def write(self, frames: np.ndarray) -> None:
        """Appends uint8 frames [T, H, W, 3], RGB, to the open segment; opens one if needed. Blocks while busy.

        Raises PackForcingError for frames of another shape or dtype, or if the encoder has died.
        """
        self._must_be_writable()
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (self.height, self.width, 3):
            raise PackForcingError(
                f"Got frames {frames.dtype} {list(frames.shape)} "
                f"but expected uint8 [T, {self.height}, {self.width}, 3]."
            )
        width, height = self.format.stored_size(self.width, self.height)
        pad = ((0, 0), (0, height - self.height), (0, width - self.width), (0, 0))
        data = np.ascontiguousarray(np.pad(frames, pad, mode="edge"))
        try:
            if self._encoder is None:
                self._encoder = Encoder(self._arguments)
            self._encoder.write(data.data)
        except FfmpegError as error:
            self._fail(error)
        self._open_frames += len(frames)

    def end_segment(self) -> None:
        """Closes the open segment, if any, and writes it to disk. The next frame starts a fresh encoder.

        Raises PackForcingError if the encoder failed, the disk is full or the video was removed.
        """
        self._must_be_writable()
        self._close_segment(strict=True)

    def finish(self, metadata: Mapping[str, object] | None = None, *, keep_growing: bool = False) -> Path:
        """Closes the video and makes the final file, which can be streamed and seeked.

        metadata: key -> text or JSON values; ComfyUI reads "prompt" and "workflow".
        keep_growing: keeps the growing video, so that the video can be extended or retaken later.
        Raises PackForcingError if the final file cannot be made; the growing video then stays unchanged.
        """
        self.end_segment()
        if not self.segments:
            raise PackForcingError(f"The video {self.path} has no frames; write frames before finishing it.")
        try:
            write_final(self.growing_path, self.path, self._closed_frames, self.format, metadata or {})
        except (PackForcingError, OSError) as error:
            self._fail(error)
        self.abort()
        if not keep_growing:
            with suppress(OSError):  # On Windows someone may be watching it; the final video is complete anyway.
                self.growing_path.unlink()
        return self.path

    def abort(self) -> None:
        """Stops: drops the open segment and closes the video; its closed segments stay playable."""
        if self._encoder is not None:
            self._encoder.kill()
        self._encoder = None
        self._open_frames = 0
        self._file.close()
        self._problem = self._problem or "it was closed"

    def _must_be_writable(self) -> None:
        if self._problem:
            raise PackForcingError(f"Nothing more can be written to {self.path}: {self._problem}.")

    def _try_encoder(self) -> bytes:
        """Encodes one black frame, to test codec and size, and to get the video's init boxes."""
        width, height = self.format.stored_size(self.width, self.height)
        try:
            encoder = Encoder(self._arguments)
            encoder.write(bytes(width * height * 3))
            return split_segment(encoder.close())[0]
        except PackForcingError as error:
            needed = self.format.settings.encoder
            if not has_encoder(needed):
                raise PackForcingError(
                    f"This ffmpeg was built without {needed}, which codec {self.format.codec} needs. Choose another "
                    "codec, or run `pip install --upgrade imageio-ffmpeg`."
                ) from error
            raise PackForcingError(
                f"Codec {self.format.codec} cannot encode {self.width}x{self.height} here: {error}"
            ) from error

    def _video_to_continue(self, first_segment: int) -> ScannedVideo:
        if not first_segment:
            return ScannedVideo(self._init, ())
        video = scan_video(self.growing_path)
        if len(video.segments) < first_segment:
            raise VideoError(
                f"The video {self.growing_path} has {len(video.segments)} complete segments, but {first_segment} were "
                f"expected. Continue from segment {len(video.segments)} or earlier."
            )
        if video.init != self._init:
            raise VideoError(
                f"The video {self.growing_path} was started with another size, codec, quality or frame rate, or by "
                "another ffmpeg: continue it with the same, or start a new video."
            )
        return video

    def _open_video(self, new: bool):
        """Opens the growing video and cuts it to the kept segments. Unbuffered: nothing may be written after a failed
        write.
        """
        try:
            for folder in (self.path.parent, self.growing_path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            file = open(self.growing_path, "w+b" if new else "r+b", buffering=0)  # noqa: SIM115, kept open
        except OSError as error:
            raise PackForcingError(
                f"The video {self.growing_path} cannot be written to: {error}. Choose another folder."
            ) from error
        try:
            if new:
                _write_all(file, self._init)
            file.truncate(self._size)
            os.fsync(file.fileno())
        except OSError as error:
            file.close()
            raise PackForcingError(f"The video {self.growing_path} cannot be written: {error}.") from error
        return file

    def _close_segment(self, strict: bool) -> None:
        """With `strict`, the segment must have every frame that was written (not so after an interrupted write)."""
        if self._encoder is None:
            return
        try:
            encoded = self._encoder.close()
            self._encoder = None
            init, media, frames = split_segment(encoded)
            if init != self._init or (strict and frames != self._open_frames):
                raise VideoError(f"The encoder returned {frames} of {self._open_frames} frames, or changed its format.")
            self._append(media, frames)
        except (PackForcingError, OSError) as error:
            self._fail(error)

    def _append(self, media: bytearray, frames: int) -> None:
        if not self.growing_path.exists():
            raise VideoError(f"{self.growing_path} was removed while it was being written")
        place_segment(media, self.segments, self._closed_frames * self.format.ticks_per_frame)
        header = media[: len(_UNTIL_THE_END)]
        media[: len(_UNTIL_THE_END)] = _UNTIL_THE_END
        try:
            self._put(media, self._size)
            self._put(header, self._size)
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(media)
        self._closed_frames += frames
        self._open_frames = 0
        self.segments += 1

    def _put(self, data: bytes | bytearray, position: int) -> None:
        self._file.seek(position)
        _write_all(self._file, data)
        os.fsync(self._file.fileno())

    def _fail(self, error: Exception) -> None:
        """Stops for good, because later frames would leave a gap, and raises an error that says what is complete."""
        self._problem = "it failed before"
        self.abort()
        raise PackForcingError(
            f"The video could not be written: {error}. The first {self.segments} segments "
            f"({self._closed_frames} frames) are complete in {self.growing_path}, which plays; "
            f"fix the cause, then continue from segment {self.segments}."
        ) from error


def _encoder_arguments(width: int, height: int, video_format: VideoFormat) -> list[str]:
    width, height = video_format.stored_size(width, height)
    return [
        *("-v", "warning", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}"),
        *("-framerate", f"{video_format.rate.numerator}/{video_format.rate.denominator}", "-i", "pipe:0"),
        *("-vf", video_format.filters, "-fps_mode", "passthrough", *video_format.settings.arguments),
        *(
            "-crf",
            str(video_format.crf),
            "-bitexact",
            *_GROWING,
            *_NO_CUT,
            "-video_track_timescale",
            str(video_format.timescale),
        ),
        *("-f", "mp4", "pipe:1"),
    ]


def _write_all(file, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
