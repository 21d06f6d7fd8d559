"""Encoding settings of a video: the table of codecs, and the choice of codec, quality and frame rate."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from ..errors import PackForcingError
from ..ranges import Range, in_range

_SLOWEST = 1.0
_MIN_TIMESCALE = 10_000

# Bit-exact arithmetic without vector shortcuts, so that another machine continues a video with the same pixels.
_TO_YUV = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int+bitexact,"
    "format=yuv420p,setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)


@dataclass(frozen=True)
class Codec:
    """One row of the codec table: the ffmpeg arguments for this codec.

    Thread counts are fixed in `arguments`, because they change the encoders' output, and a video must not depend on the
    number of cores. There are no B-frames: frames are stored in display order, so segments of any length, even one
    frame, join without a gap. Quality is the encoder's constant rate factor: lower is better and larger.
    """

    name: str
    about: str
    arguments: tuple[str, ...]
    filters: str
    default_quality: int
    quality_range: tuple[int, int]
    # 4:2:0 codecs store one colour sample per 2x2 pixels, so odd sizes are padded by repeating the last row or column.
    even_sizes: bool = True

    @property
    def encoder(self) -> str:
        """ffmpeg's name of the encoder."""
        return self.arguments[self.arguments.index("-c:v") + 1]


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(
            name="h264",
            about="H.264 4:2:0, plays everywhere",
            arguments=(
                *("-c:v", "libx264", "-preset", "medium", "-bf", "0", "-threads", "4"),
                *("-x264-params", "cpu-independent=1:open-gop=0"),
            ),
            filters=_TO_YUV,
            default_quality=18,
            quality_range=(0, 51),
        ),
        Codec(
            name="h265",
            about="H.265 4:2:0, smaller files, slower, not in every browser",
            arguments=(
                *("-c:v", "libx265", "-preset", "medium", "-tag:v", "hvc1"),
                # info=0: the information record names the CPU, so equal videos would differ.
                *("-x265-params", "bframes=0:pools=4:frame-threads=1:open-gop=0:info=0:log-level=error"),
            ),
            filters=_TO_YUV,
            default_quality=20,
            quality_range=(0, 51),
        ),
        Codec(
            name="av1",
            about="AV1 4:2:0, smallest files, recent browsers and players only",
            arguments=("-c:v", "libsvtav1", "-preset", "8", "-svtav1-params", "lp=4"),
            filters=_TO_YUV,
            default_quality=24,
            quality_range=(1, 63),
        ),
        Codec(
            name="lossless",
            about="lossless H.264 in RGB: large files for archives and editors; does not play everywhere",
            arguments=(
                *("-c:v", "libx264rgb", "-preset", "fast", "-bf", "0", "-threads", "4"),
                *("-x264-params", "cpu-independent=1:open-gop=0"),
            ),
            filters="format=rgb24",
            default_quality=0,
            quality_range=(0, 0),
            even_sizes=False,
        ),
    )
}


@dataclass(frozen=True)
class VideoFormat:
    """Codec (a key of `CODECS`), quality (None: the codec's default; lower is better) and frames per second.

    `zoom` scales each pixel to `zoom` x `zoom` pixels. Raises PackForcingError for an unknown codec, a quality outside
    the codec's range, a rate outside 1..240, or a zoom outside 1..16.
    """

    codec: str = "h264"
    quality: int | None = None
    fps: float = 16.0
    zoom: int = 1

    def __post_init__(self):
        if not isinstance(self.codec, str) or self.codec not in CODECS:
            raise PackForcingError(f"Got codec {self.codec!r} but expected one of {', '.join(CODECS)}.")
        low, high = self.settings.quality_range
        allowed = Range(low, high, whole=True)
        if not allowed.holds(self.crf):
            raise PackForcingError(f"quality is {self.crf!r:.60} for codec {self.codec}; expected {allowed}.")
        if in_range("fps", self.fps) < _SLOWEST:
            raise PackForcingError(f"fps is {self.fps}; expected {_SLOWEST:g} or more for a file.")
        in_range("zoom", self.zoom)

    @property
    def settings(self) -> Codec:
        return CODECS[self.codec]

    @property
    def crf(self) -> int:
        return self.settings.default_quality if self.quality is None else self.quality

    @property
    def rate(self) -> Fraction:
        """Exact frames per second: 23.976, 29.97 and 59.94 mean 24000/1001 and so on, as in broadcasting."""
        nominal = round(self.fps * 1.001)
        if self.fps != round(self.fps) and abs(self.fps * 1.001 - nominal) < 0.002:
            return Fraction(nominal * 1000, 1001)
        return Fraction(self.fps).limit_denominator(1000)

    @property
    def filters(self) -> str:
        """ffmpeg's filters for a frame before it is encoded."""
        enlarge = f"scale=iw*{self.zoom}:ih*{self.zoom}:flags=neighbor," if self.zoom > 1 else ""
        return enlarge + self.settings.filters

    @property
    def timescale(self) -> int:
        """Ticks per second of the video's clock: fine enough for players, with a whole number of ticks per frame."""
        ticks = self.rate.numerator
        while ticks < _MIN_TIMESCALE:
            ticks *= 2
        return ticks

    @property
    def ticks_per_frame(self) -> int:
        return int(self.timescale / self.rate)

    def stored_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in the file before `zoom`; odd sizes grow by one pixel if the codec needs even ones."""
        if not self.settings.even_sizes:
            return width, height
        return width + width % 2, height + height % 2
