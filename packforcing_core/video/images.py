"""Image files as one RGB frame: upright, with black behind transparent parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .boxes import VideoError

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "AVIF")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_PHONE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_BYTES_OF_SIGNATURE = 16


@dataclass(frozen=True)
class StillImage:
    """`pixels` uint8 [H, W, 3], Pillow's name of the format, and notes for the user."""

    pixels: np.ndarray
    format: str
    notes: tuple[str, ...]


def is_image(path: Path) -> bool:
    """Whether a file begins like an image, whatever its name; False if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            start = file.read(_BYTES_OF_SIGNATURE)
    except OSError:
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return webp or start.startswith(_SIGNATURES) or (start[4:8] == b"ftyp" and start[8:12] in _PHONE_BRANDS)


def read_image(path: Path) -> StillImage:
    """The image in a file, rotated as its metadata says. Raises VideoError if it cannot be read."""
    try:
        with Image.open(path, formats=[name for name in _FORMATS if name in _readable()]) as image:
            more = getattr(image, "n_frames", 1) - 1
            notes = (f"It holds {more} more images: only the first is used.",) if more else ()
            image.load()
            upright, told = _upright(image)
            pixels, shown = _rgb(upright)
            return StillImage(pixels, image.format or "image", (*notes, *told, *shown))
    except UnidentifiedImageError as error:
        raise VideoError(
            f"The image {path} cannot be read: it is damaged, or in a format that is not supported (such as HEIC). "
            "Save it as JPEG or PNG."
        ) from error
    # Image decoders raise errors of any kind for a damaged file.
    except Exception as error:
        raise VideoError(f"The image {path} cannot be read: {error}. Save it again as JPEG or PNG.") from error


def _readable() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        return ImageOps.exif_transpose(image), ()
    except Exception:  # Damaged metadata is no reason to refuse the image.
        return image, ("Its metadata is damaged, so it is not rotated.",)


def _rgb(image: Image.Image) -> tuple[np.ndarray, tuple[str, ...]]:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), ()
    if image.mode == "F":
        raise ValueError("its pixel values have no known range")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return np.array(image.convert("RGB")), ()
    layers = image.convert("RGBA")
    black = Image.new("RGBA", layers.size, "black")
    opaque = layers.getchannel("A").getextrema()[0] == 255
    said = () if opaque else ("It has transparency: transparent parts become black.",)
    return np.array(Image.alpha_composite(black, layers).convert("RGB")), said
