"""Frames to a file that plays while it grows, and back."""

from .boxes import Film, FilmError, Segment, scan_film
from .format import CODECS, Codec, VideoFormat
from .process import FfmpegError
from .reader import VideoInfo, probe, read_frames
from .writer import SegmentedWriter

__all__ = [
    "CODECS",
    "Codec",
    "FfmpegError",
    "Film",
    "FilmError",
    "Segment",
    "SegmentedWriter",
    "VideoFormat",
    "VideoInfo",
    "probe",
    "read_frames",
    "scan_film",
]
