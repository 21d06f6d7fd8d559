"""Photos and drawings as one RGB frame: upright, on black where they are transparent."""

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
    """`pixels` uint8 [H, W, 3], the format's name as Pillow spells it, and what is to be said."""

    pixels: np.ndarray
    format: str
    notes: tuple[str, ...]


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does, whatever its name; False where it cannot be opened."""
    try:
        with open(path, "rb") as file:
            start = file.read(_BYTES_OF_SIGNATURE)
    except OSError:
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return webp or start.startswith(_SIGNATURES) or (start[4:8] == b"ftyp" and start[8:12] in _PHONE_BRANDS)


def read_image(path: Path) -> StillImage:
    """The image in a file, turned as its metadata says. Raises VideoError where it cannot be read."""
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
            f"The image {path} cannot be read: it is damaged, or of a format that is not read here (HEIC photos are "
            "such). Save it as JPEG or PNG."
        ) from error
    # Decoders of image formats raise what they like where a file is damaged.
    except Exception as error:
        raise VideoError(f"The image {path} cannot be read: {error}. Save it again as JPEG or PNG.") from error


def _readable() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        return ImageOps.exif_transpose(image), ()
    except Exception:  # Damaged metadata is no reason to refuse the image itself.
        return image, ("Its metadata is damaged: it is not turned.",)


def _rgb(image: Image.Image) -> tuple[np.ndarray, tuple[str, ...]]:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), ()
    if image.mode == "F":
        raise ValueError("its numbers have no range")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return np.array(image.convert("RGB")), ()
    layers = image.convert("RGBA")
    black = Image.new("RGBA", layers.size, "black")
    opaque = layers.getchannel("A").getextrema()[0] == 255
    said = () if opaque else ("It has transparency: what is transparent is shown on black.",)
    return np.array(Image.alpha_composite(black, layers).convert("RGB")), said
