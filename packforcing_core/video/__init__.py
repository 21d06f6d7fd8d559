"""Writing frames to a file that plays while it grows, and reading videos and images."""

from .boxes import ScannedVideo, Segment, VideoError, scan_video
from .format import CODECS, Codec, VideoFormat
from .process import FfmpegError
from .reader import VideoInfo, probe, read_frames
from .writer import SegmentedWriter

__all__ = [
    "CODECS",
    "Codec",
    "FfmpegError",
    "ScannedVideo",
    "Segment",
    "SegmentedWriter",
    "VideoError",
    "VideoFormat",
    "VideoInfo",
    "probe",
    "read_frames",
    "scan_video",
]
