"""Sizes of a render, as plain integers: pixel frames, latent frames, blocks, tokens.

The Wan VAE's first latent frame is one pixel frame, every other one is four. The VAE reduces height and width 8 times,
the transformer's patches another 2 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import PackForcingError

GB = 1e9
PIXEL_FRAMES_PER_LATENT = 4
VAE_SPATIAL_STRIDE = 8
PATCH = 2
SIZE_MULTIPLE = VAE_SPATIAL_STRIDE * PATCH
LATENT_CHANNELS = 16
MAX_SIDE = 8192
MAX_FPS = 240.0
MAX_SECONDS = 36_000.0
# How many latent frames, and how many latent pixels along each side, one token of a compressed block covers.
COMPRESSED_TIME = 2
COMPRESSED_SPACE = 8


def size_text(size: float) -> str:
    """A size in bytes as text: "3.99 GB", "4.7 MB" below 0.1 GB, "36 kB" below 0.1 MB, and "0 MB" for nothing."""
    if size == 0:
        return "0 MB"
    if size >= GB / 10:
        return f"{size / GB:.2f} GB"
    unit, name = (1e6, "MB") if size >= 1e5 else (1e3, "kB")
    return f"{float(f'{size / unit:.2g}'):g} {name}"


def blocks_text(blocks: int, frames_per_block: int) -> str:
    """Blocks and their length as text: "1 block of 4", "40 blocks of 3"."""
    return f"{block_count(blocks)} of {frames_per_block}"


def block_count(blocks: int) -> str:
    """ "1 block", "40 blocks"."""
    return f"{blocks} {'block' if blocks == 1 else 'blocks'}"


def became(wished_seconds: float, seconds: float, fps: float) -> str:
    """How a wished length was rounded: "30 s at 16 FPS became 29.81 s", "10 s at 16 FPS"."""
    wished = f"{wished_seconds:g} s at {fps:g} FPS"
    return wished if f"{wished_seconds:.2f}" == f"{seconds:.2f}" else f"{wished} became {seconds:.2f} s"


def pixel_frames(latent_frames: int) -> int:
    """Pixel frames in `latent_frames` latent frames from the start of a video."""
    return 1 + PIXEL_FRAMES_PER_LATENT * (latent_frames - 1) if latent_frames > 0 else 0


def blocks_for_seconds(seconds: float, fps: float, frames_per_block: int) -> int:
    """The number of blocks whose length is closest to `seconds`, at least one."""
    latent_frames = (seconds * fps - 1) / PIXEL_FRAMES_PER_LATENT + 1
    return max(1, math.floor(latent_frames / frames_per_block + 0.5))


def compressed_grid(frames_per_block: int, latent_height: int, latent_width: int) -> tuple[int, int, int]:
    """The grid (g_t, g_h, g_w) of a compressed block's tokens in time, rows and columns; their product is N_c.

    From latent frames T and latent pixels h, w: ceil(T/2) x floor(h/8) x floor(w/8), each at least 1. For a block of 4
    at 832x480: 2 x 7 x 13 = 182. Source: the PackForcing paper (arXiv 2603.25730).
    """
    return (
        -(-frames_per_block // COMPRESSED_TIME),
        max(1, latent_height // COMPRESSED_SPACE),
        max(1, latent_width // COMPRESSED_SPACE),
    )


def _require_positive(name: str, value: float, unit: str, most: float = math.inf) -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        up_to = f", at most {most:g}" if math.isfinite(most) else ""
        raise PackForcingError(f"{name} is {value}; expected a positive number of {unit}{up_to}.")


def _require_size(name: str, value: int) -> None:
    if value > MAX_SIDE:
        raise PackForcingError(f"{name} is {value}; expected at most {MAX_SIDE} pixels.")
    if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
        below = max(SIZE_MULTIPLE, value // SIZE_MULTIPLE * SIZE_MULTIPLE)
        raise PackForcingError(
            f"{name} is {value}; it must be a positive multiple of {SIZE_MULTIPLE}. "
            f"The nearest sizes are {below} and {below + SIZE_MULTIPLE}."
        )


@dataclass(frozen=True)
class VideoGeometry:
    """The size of one render. `width` and `height` in pixels, `fps` in pixel frames per second."""

    width: int
    height: int
    fps: float
    frames_per_block: int
    blocks: int

    def __post_init__(self):
        _require_size("width", self.width)
        _require_size("height", self.height)
        _require_positive("fps", self.fps, "frames per second", MAX_FPS)
        _require_positive("frames_per_block", self.frames_per_block, "latent frames")
        _require_positive("blocks", self.blocks, "blocks")

    @classmethod
    def from_seconds(
        cls, seconds: float, *, width: int, height: int, fps: float, frames_per_block: int
    ) -> VideoGeometry:
        """The geometry closest to a requested length; `seconds` of the result is the actual length."""
        _require_positive("seconds", seconds, "seconds", MAX_SECONDS)
        _require_positive("fps", fps, "frames per second", MAX_FPS)
        _require_positive("seconds x fps", seconds * fps, "frames")
        _require_positive("frames_per_block", frames_per_block, "latent frames")
        return cls(width, height, fps, frames_per_block, blocks_for_seconds(seconds, fps, frames_per_block))

    @property
    def latent_frames(self) -> int:
        return self.blocks * self.frames_per_block

    @property
    def pixel_frames(self) -> int:
        return pixel_frames(self.latent_frames)

    @property
    def frames_per_push(self) -> int:
        """Pixel frames in a whole block."""
        return PIXEL_FRAMES_PER_LATENT * self.frames_per_block

    @property
    def seconds(self) -> float:
        return self.pixel_frames / self.fps

    @property
    def latent_height(self) -> int:
        return self.height // VAE_SPATIAL_STRIDE

    @property
    def latent_width(self) -> int:
        return self.width // VAE_SPATIAL_STRIDE

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in one latent frame."""
        return self.height // SIZE_MULTIPLE, self.width // SIZE_MULTIPLE

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def compressed_grid(self) -> tuple[int, int, int]:
        """The grid of a compressed block's tokens: time, rows and columns."""
        return compressed_grid(self.frames_per_block, self.latent_height, self.latent_width)

    @property
    def compressed_tokens(self) -> int:
        """Tokens in a compressed block (N_c): 182 for 4 latent frames at 832x480."""
        return math.prod(self.compressed_grid)

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """[1, 16, frames_per_block, h, w] of one latent block."""
        return (1, LATENT_CHANNELS, self.frames_per_block, self.latent_height, self.latent_width)

    def block_at(self, seconds: float) -> int:
        """The block that shows the time `seconds` (which may be after the end of the clip)."""
        _require_positive("seconds", seconds + 1, "seconds")
        frame = math.floor(seconds * self.fps)
        latent_frame = (frame + PIXEL_FRAMES_PER_LATENT - 1) // PIXEL_FRAMES_PER_LATENT
        return latent_frame // self.frames_per_block

    def describe(self) -> str:
        """One line, for a title."""
        return (
            f"{self.width}x{self.height}, {self.seconds:.2f} s at {self.fps:g} FPS, "
            f"{blocks_text(self.blocks, self.frames_per_block)} latent frames"
        )

    def describe_length(self, wished_seconds: float) -> str:
        """One line on how the requested length was rounded to whole blocks."""
        return (
            f"{became(wished_seconds, self.seconds, self.fps)}: {self.pixel_frames} frames in "
            f"{blocks_text(self.blocks, self.frames_per_block)} latent frames"
        )
